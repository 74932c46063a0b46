"""Trains RecBole's DIEN on the MovieLens-100K that it ships, through `run_recbole`.

The rows are RecBole's own: every rating but a user's first, with the at most 50 movies rated before (liked or
not), negatives from its own sampler. Ratings of 4 and 5 are clicks. Networks of [80, 40] units, as in the
paper, instead of [256, 256, 256] keep a training to a minute.

Met on the way (recbole 1.2.1):
- numpy 2 raises on `np.float_`, and pandas from 2.3 and ray above 2.6.3 do not do either: an environment of its
  own, with Python 3.11 at most.
- Evaluating the best checkpoint fails in `torch.load`, which takes weights alone by default: `saved=False`
  evaluates the model as it stands after training.
- Importing any sequential model turns autograd's anomaly detection on for the process, which looks for NaN
  after every small operation of the loop: off here, or the unpatched times would be far longer.
- No history is empty, as users without one are no rows; one of length 0 would fail in `pack_padded_sequence`.
- A batch with histories of length 1 only has a NaN auxiliary loss (the mean of nothing), which `_check_nan`
  refuses.
"""

import recbole.model.sequential_recommender
import torch
from recbole.quick_start import run_recbole
from recorder import Recorder, parse_arguments

BATCH_SIZE = 256

arguments = parse_arguments(__doc__)
assert recbole.model.sequential_recommender.DIEN, "imported for what importing it does"
torch.autograd.set_detect_anomaly(False)
settings = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "user": ["user_id", "age", "gender", "occupation"],
        "item": ["item_id", "release_year"],
    },
    "threshold": {"rating": 4},
    "train_neg_sample_args": None,
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "labeled"},
    "mlp_hidden_size": [80, 40],
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "epochs": arguments.epochs,
    "train_batch_size": BATCH_SIZE,
    "seed": arguments.seed,
    "metric_decimal_place": 10,
    "show_progress": False,
    "use_gpu": False,
}

report = None
if arguments.accelerate:
    import dien_fast

    report = dien_fast.accelerate("recbole")

with Recorder() as run:
    result = run_recbole(model="DIEN", dataset="ml-100k", config_dict=settings, saved=False)
run.save(
    arguments,
    "recbole",
    auc=result["test_result"]["auc"],
    batch_size=BATCH_SIZE,
    epochs=arguments.epochs,
    report=report,
)
