"""Train, evaluate and score models, and the runs that training leaves behind.

Importing this package needs torch and numpy alone; what needs the ``train`` extra says so when it is used.
"""

from dien_fast.training.loop import epoch_line, fit, make_accelerator, print_line, seed_everything
from dien_fast.training.scoring import evaluate, predict

__all__ = ["epoch_line", "evaluate", "fit", "make_accelerator", "predict", "print_line", "seed_everything"]
