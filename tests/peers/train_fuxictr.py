"""Trains FuxiCTR's DIEN (LongCTR) on MovieLens-100K through its data loader and `fit`.

Met on the way (fuxictr 2.3.10):
- Its loader pads in front by default while DIEN packs the first steps: `padding="post"` here, the histories
  already cut to their newest 50.
- The loader keeps histories in a table beside the rows, of which a row takes the first `seq_len`; the table has
  a line a row here.
- There is no auxiliary loss.
- A batch with no history or with a single one fails (packing, `squeeze`); ML-100K's batches of 256 rows have
  more. Single empty histories stay in.
- `model_zoo` is installed as a top-level package, and its loader expects to be run from its own folder.
"""

import json
import sys
from pathlib import Path

import model_zoo.LongCTR
import pandas as pd
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from ml_100k import MAX_LENGTH, MOVIES, PARTS, USERS, load
from model_zoo.LongCTR.DIEN.DIEN import DIEN
from recorder import Recorder, parse_arguments

sys.path.append(str(Path(model_zoo.LongCTR.__file__).parent))
from longctr_dataloader import LongCTRDataLoader

BATCH_SIZE, EMBEDDING = 256, 16


def write_dataset(directory, parts):
    """Write rows, histories, items and the map of features as the library's preprocessing leaves them."""
    directory.mkdir(exist_ok=True)
    line = 0
    histories = []
    for name, part in zip(PARTS, parts, strict=True):
        rows = {
            "user_index": range(line, line + len(part)),
            "item_index": part.movie,
            "seq_len": part.length,
            "user_id": part.user,
            "label": part.label.astype(int),  # a float would turn the whole table, ids too, into floats
        }
        pd.DataFrame(rows).to_parquet(directory / f"{name}.parquet")
        histories += [row[:count] for row, count in zip(part.history, part.length, strict=True)]
        line += len(part)
    pd.DataFrame({"full_item_seq": histories}).to_parquet(directory / "user_info.parquet")
    movies = range(MOVIES + 1)
    pd.DataFrame({"item_index": movies, "item_id": movies}).to_parquet(directory / "item_info.parquet")
    meta = {"source": "", "type": "meta"}
    categorical = {"type": "categorical", "padding_idx": 0}
    feature_map = {
        "dataset_id": directory.name,
        "num_fields": 2,
        "total_features": USERS + MOVIES + 2,
        "input_length": 5,
        "labels": ["label"],
        "features": [
            {"user_index": meta},
            {"item_index": meta},
            {"seq_len": meta},
            {"user_id": categorical | {"source": "user", "vocab_size": USERS + 1}},
            {"item_id": categorical | {"source": "item", "vocab_size": MOVIES + 1}},
        ],
    }
    (directory / "feature_map.json").write_text(json.dumps(feature_map))


arguments = parse_arguments(__doc__)
directory = Path("ml-100k").resolve()
write_dataset(directory, load(arguments.data))
settings = {
    "data_loader": LongCTRDataLoader,
    "train_data": str(directory / "train.parquet"),
    "valid_data": str(directory / "valid.parquet"),
    "test_data": str(directory / "test.parquet"),
    "user_info": str(directory / "user_info.parquet"),
    "item_info": str(directory / "item_info.parquet"),
    "batch_size": BATCH_SIZE,
    "max_len": MAX_LENGTH,
    "padding": "post",
    "num_workers": 0,
}
feature_map = FeatureMap(directory.name, str(directory))
feature_map.load(str(directory / "feature_map.json"), {"embedding_dim": EMBEDDING})

report = None
if arguments.accelerate:
    import dien_fast

    report = dien_fast.accelerate("fuxictr")

seed_everything(arguments.seed)
train, valid, test = RankDataLoader(feature_map, stage="both", **settings)
model = DIEN(
    feature_map,
    embedding_dim=EMBEDDING,
    gru_type="AUGRU",
    optimizer="adam",
    loss="binary_crossentropy",
    learning_rate=1e-3,
    metrics=["AUC", "logloss"],
    verbose=0,
    model_root=".",
)
with Recorder() as run:
    model.fit(train, epochs=arguments.epochs, validation_data=valid)
auc = model.evaluate(test)["AUC"]
run.save(arguments, "fuxictr", auc=auc, batch_size=BATCH_SIZE, epochs=arguments.epochs, report=report)
