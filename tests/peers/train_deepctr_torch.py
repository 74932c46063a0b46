"""Trains DeepCTR-Torch's DIEN on MovieLens-100K through its `compile` and `fit`.

Met on the way (deepctr-torch 0.3.0):
- All inputs are one float32 table, so ids above 2^24 would be rounded; ML-100K's are far below.
- `add_auxiliary_loss` adds a mean to a main loss that is a sum over the batch.
- A batch whose histories are all empty fails ("not enough values to unpack"). Batches of 256 rows of ML-100K
  never are; single empty histories stay in.
- The histories that share a table name it with `embedding_name`.
"""

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat, get_feature_names
from deepctr_torch.models import DIEN
from ml_100k import MAX_LENGTH, MOVIES, USERS, load
from recorder import Recorder, parse_arguments
from sklearn.metrics import roc_auc_score

BATCH_SIZE, EMBEDDING = 256, 16


def movies_column(name):
    column = SparseFeat(name, MOVIES + 1, EMBEDDING, embedding_name="movie")
    return VarLenSparseFeat(column, MAX_LENGTH, length_name="length")


arguments = parse_arguments(__doc__)
train, _, test = load(arguments.data)

columns = [
    SparseFeat("user", USERS + 1, EMBEDDING),
    SparseFeat("movie", MOVIES + 1, EMBEDDING),
    movies_column("hist_movie"),
    movies_column("neg_hist_movie"),
]


def inputs(part):
    values = {
        "user": part.user,
        "movie": part.movie,
        "hist_movie": part.history,
        "neg_hist_movie": part.negatives,
        "length": part.length,
    }
    return {name: values[name] for name in get_feature_names(columns)}


report = None
if arguments.accelerate:
    import dien_fast

    report = dien_fast.accelerate("deepctr-torch")

torch.manual_seed(arguments.seed)
model = DIEN(columns, ["movie"], gru_type="AUGRU", use_negsampling=True, init_std=0.01, seed=arguments.seed)
model.compile("adam", "binary_crossentropy", metrics=["auc"])
with Recorder() as run:
    model.fit(inputs(train), train.label, batch_size=BATCH_SIZE, epochs=arguments.epochs, verbose=0)
scores = model.predict(inputs(test), BATCH_SIZE)
run.save(
    arguments,
    "deepctr-torch",
    auc=roc_auc_score(test.label, np.ravel(scores)),
    batch_size=BATCH_SIZE,
    epochs=arguments.epochs,
    report=report,
)
