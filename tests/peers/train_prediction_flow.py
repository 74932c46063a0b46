"""Trains prediction-flow's DIEN on MovieLens-100K through its `fit`.

Met on the way (prediction-flow 0.1.5):
- A history of length 0 fails in `pack_padded_sequence`, and a batch of one row in `squeeze`: rows without a
  history are left out here (of training and test alike), and a last batch of one row does not come about.
- A batch with histories of length 1 only has a NaN auxiliary loss; ML-100K's batches of 256 rows have longer
  ones.
- `fit` takes `auxiliary_loss_rate` but never adds the auxiliary loss: by then its prediction is no tuple any
  more. The loss is computed all the same.
- `fit` without a loader of validation rows fails in its last line.
- Its sequence encoder needs `np.object`, gone since NumPy 1.24. Features without an encoder take ids as they
  are.
- Cells are its own: attention scales the share of the state that is kept.
"""

import numpy as np
import torch
from ml_100k import MAX_LENGTH, MOVIES, USERS, load
from prediction_flow.features import Category, Features, Sequence
from prediction_flow.pytorch import DIEN, AttentionGroup
from prediction_flow.pytorch.data import Dataset
from prediction_flow.pytorch.functions import fit, predict
from recorder import Recorder, parse_arguments
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

BATCH_SIZE, EMBEDDING = 256, 16


def movies_feature(name):
    return Sequence(name, None, embedding_name="movie", vocab_size=MOVIES + 1, max_length=MAX_LENGTH)


def lists(rows, length):
    """Return an object array of histories without their padding, as the library's encoder makes them."""
    result = np.empty(len(rows), object)
    result[:] = [row[:count] for row, count in zip(rows, length, strict=True)]
    return result


def loader(features, part, shuffle):
    inputs = {
        "user": part.user,
        "movie": part.movie,
        "history": lists(part.history, part.length),
        "negatives": lists(part.negatives, part.length),
    }
    return DataLoader(Dataset(features, inputs, part.label), BATCH_SIZE, shuffle=shuffle)


arguments = parse_arguments(__doc__)
train, valid, test = (part.rows(part.length > 0) for part in load(arguments.data))
assert len(train) % BATCH_SIZE != 1, "the last batch would have one row"

features = Features(
    category_features=[
        Category("user", None, vocab_size=USERS + 1),
        Category("movie", None, vocab_size=MOVIES + 1),
    ],
    sequence_features=[movies_feature("history"), movies_feature("negatives")],
)
pairs = [{"ad": "movie", "pos_hist": "history", "neg_hist": "negatives"}]

report = None
if arguments.accelerate:
    import dien_fast

    report = dien_fast.accelerate("prediction-flow")

torch.manual_seed(arguments.seed)
model = DIEN(
    features,
    [AttentionGroup("movies", pairs, hidden_layers=[80, 40], gru_type="AUGRU")],
    num_classes=2,
    embedding_size=EMBEDDING,
    hidden_layers=[200, 80],
    final_activation="sigmoid",
    use_negsampling=True,
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with Recorder() as run:
    fit(
        arguments.epochs,
        model,
        torch.nn.BCELoss(),
        optimizer,
        loader(features, train, shuffle=True),
        loader(features, valid, shuffle=False),
        auxiliary_loss_rate=1.0,
    )
scores = predict(model, loader(features, test, shuffle=False))
run.save(
    arguments,
    "prediction-flow",
    auc=roc_auc_score(test.label, np.ravel(scores)),
    batch_size=BATCH_SIZE,
    epochs=arguments.epochs,
    report=report,
)
