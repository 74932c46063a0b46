"""What the trainings share: their arguments, and a recorder of what a training did."""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def parse_arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="file that ml_100k.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerate", action="store_true", help="call dien_fast.accelerate")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2024, help="of parameters and of the order of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # The libraries leave logs and checkpoints where they run.
    scratch = arguments.output.with_suffix("").resolve()
    arguments.data, arguments.output = arguments.data.resolve(), arguments.output.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    return arguments


class Recorder:
    """Context that notes the loss of every step, as the trainer differentiates it, and when the step ended.

    Every trainer calls `loss.backward()` and `optimizer.step()` once a step; both are looked at, not changed.
    """

    def __enter__(self):
        self.losses, self.times = [], []
        self._backward = backward = torch.Tensor.backward
        losses = self.losses

        def noting_backward(self, *args, **kwargs):
            losses.append(self.detach().clone())
            return backward(self, *args, **kwargs)

        torch.Tensor.backward = noting_backward
        self._hook = register_optimizer_step_post_hook(
            lambda *_: self.times.append((time.perf_counter(), time.process_time()))
        )
        return self

    def _note_time(self, *_):
        self.times.append((time.perf_counter(), time.process_time()))

    def __exit__(self, *exception):
        torch.Tensor.backward = self._backward
        self._hook.remove()

    def save(self, arguments, library, *, auc, batch_size, epochs=1, report=None):
        steps = len(self.times)
        assert steps == len(self.losses) > 1, f"{len(self.losses)} losses in {steps} steps"
        # From the end of the first step to the end of the last, for as many intervals as there are steps: without
        # what comes before the first batch, and without evaluation.
        seconds, cpu_seconds = (np.array(self.times[-1]) - self.times[0]) * steps / (steps - 1) / epochs
        result = {
            "library": library,
            "version": version(library),
            "accelerated": arguments.accelerate,
            "fast": [str(entry) for model in report.models for entry in model.fast] if report else [],
            "left": [str(entry) for model in report.models for entry in model.left] if report else [],
            "threads": arguments.threads,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "batch_size": batch_size,
            "epochs": epochs,
            "steps": steps,
            "auc": float(auc),
            "epoch_seconds": round(seconds, 2),
            "epoch_cpu_seconds": round(cpu_seconds, 2),
            "losses": [loss.item() for loss in self.losses],
        }
        arguments.output.write_text(json.dumps(result) + "\n")
        print(f"{library}: AUC {auc:.4f}, {steps} steps, {seconds:.1f} s an epoch ({cpu_seconds:.1f} s of CPU)")
