"""Trains torch-rechub's DIEN on MovieLens-100K through its `CTRTrainer`.

Met on the way (torch-rechub 0.9.0):
- Histories and negatives take the candidate's table (`shared_with`), whose row 0 is padding.
- The evolving layer runs over padding too; its attention there is 0, so the state stays.
- Rows without a history are left out by the model itself, also where a whole batch has none: they stay in.
- `fit` writes model.pth into `model_path`.
"""

import torch
from ml_100k import MOVIES, USERS, load
from recorder import Recorder, parse_arguments
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIEN
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

BATCH_SIZE, EMBEDDING = 256, 16


def history_feature(name):
    return SequenceFeature(name, MOVIES + 1, EMBEDDING, pooling="concat", shared_with="movie", padding_idx=0)


def inputs(part):
    return {"user": part.user, "movie": part.movie, "history": part.history, "negatives": part.negatives}


arguments = parse_arguments(__doc__)
train, valid, test = load(arguments.data)

report = None
if arguments.accelerate:
    import dien_fast

    report = dien_fast.accelerate("torch-rechub")

torch.manual_seed(arguments.seed)
loaders = DataGenerator(inputs(train), train.label).generate_dataloader(
    inputs(valid), valid.label, inputs(test), test.label, batch_size=BATCH_SIZE
)
model = DIEN(
    features=[SparseFeature("user", USERS + 1, EMBEDDING)],
    history_features=[history_feature("history")],
    neg_history_features=[history_feature("negatives")],
    target_features=[SparseFeature("movie", MOVIES + 1, EMBEDDING, padding_idx=0)],
    mlp_params={"dims": [200, 80]},
)
trainer = CTRTrainer(model, n_epoch=arguments.epochs, loss_mode=False)
with Recorder() as run:
    trainer.fit(loaders[0])
auc = trainer.evaluate(trainer.model, loaders[2])
run.save(arguments, "torch-rechub", auc=auc, batch_size=BATCH_SIZE, epochs=arguments.epochs, report=report)
