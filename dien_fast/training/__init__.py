"""Train, evaluate and score models, and the runs that training leaves behind.

Importing this package needs torch and numpy alone; what needs the ``train`` extra says so when it is used.
"""

from dien_fast.lines import print_line
from dien_fast.training.accelerator import make_accelerator
from dien_fast.training.loop import epoch_line, fit, seed_everything
from dien_fast.training.position import StopRequest, TrainingStopped
from dien_fast.training.scoring import evaluate, predict
from dien_fast.training.settings import TrainSettings

__all__ = [
    "StopRequest",
    "TrainSettings",
    "TrainingStopped",
    "epoch_line",
    "evaluate",
    "fit",
    "make_accelerator",
    "predict",
    "print_line",
    "seed_everything",
]
