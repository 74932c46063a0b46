"""Trains a small DIEN for a long time, and watches what the process holds: memory, open descriptors, threads.

    python benchmarks/soak.py [--steps 20000] [--every 1000] [--threads 2]

The rows are those of ``dien-fast train --dataset synthetic``, trained as the command does, with a checkpoint and
a validation after each epoch. Growth is the slope of a line through the figures of the second half: in the first,
every size of buffer comes up once. It ends with status 1 if a loss is not finite.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from memory import resident
from torch.optim.optimizer import register_optimizer_step_post_hook

from dien_fast.data.sources import Source
from dien_fast.errors import DienFastError
from dien_fast.training.config import RunConfig
from dien_fast.training.pipeline import train_run
from dien_fast.training.position import StopRequest, TrainingStopped


class Held(NamedTuple):
    """What this process holds.

    Attributes:
        memory: resident, in MiB.
        descriptors: open ones.
        threads: of the system.
    """

    memory: float
    descriptors: int
    threads: int


def held() -> Held:
    # The listing opens a descriptor of its own.
    descriptors = len(list(Path("/proc/self/fd").iterdir())) - 1
    return Held(resident("VmRSS") / 2**20, descriptors, len(list(Path("/proc/self/task").iterdir())))


def slopes(found: list[Held], every: int) -> Held:
    """Return the growth of each figure in 1,000 steps, over the second half of figures so many steps apart.

    Example:
        >>> slopes([Held(100.0, 5, 2)] * 2 + [Held(100.0 + number, 5, 2) for number in range(4)], 500)
        Held(memory=2.0, descriptors=0.0, threads=0.0)
    """
    late = np.array(found[len(found) // 2 :], float)
    if len(late) < 2:
        return Held(*[math.nan] * 3)
    steps = np.arange(len(late)) * every / 1000
    return Held(*(round(slope, 3) + 0.0 for slope in np.polyfit(steps, late, 1)[0].tolist()))


def watch(steps: int, every: int) -> tuple[list[Held], float]:
    """Train so many steps; return what was held after each ``every``, and the last epoch's mean loss.

    Raises:
        DienFastError: a loss is not finite.
    """
    found: list[Held] = []
    losses = [math.nan]
    count, stop = itertools.count(1), StopRequest()

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        step = next(count)
        if step % every == 0:
            found.append(held())
            # A loss that is not finite makes the weights so.
            if not all(bool(weight.isfinite().all()) for weight in optimizer.param_groups[0]["params"]):
                raise DienFastError(f"a weight is not finite after {step:,} steps")
            memory, descriptors, threads = found[-1]
            print(f"step {step:,}: {memory:.1f} MiB, {descriptors} descriptors, {threads} threads", flush=True)
        stop.asked = step >= steps

    hook = register_optimizer_step_post_hook(look)
    config = RunConfig(epochs=10**6, patience=10**6, embedding_size=8)
    try:
        with tempfile.TemporaryDirectory() as directory:
            train_run(
                Source("synthetic"),
                config,
                directory,
                cpu=True,
                progress=False,
                log=lambda _: None,
                on_epoch=lambda row: losses.append(row["train_loss"]),
                stop=stop,
            )
    except TrainingStopped:
        pass
    finally:
        hook.remove()
    return found, losses[-1]


def main() -> None:
    """Train, and print what is held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        found, loss = watch(arguments.steps, arguments.every)
    except DienFastError as error:
        sys.exit(f"{error}")
    grown = slopes(found, arguments.every)
    print(
        f"in 1,000 steps of the second half: {grown.memory:+.3f} MiB, {grown.descriptors:+.3f} descriptors, "
        f"{grown.threads:+.3f} threads; mean loss of the last whole epoch {loss:.4f}"
    )


if __name__ == "__main__":
    main()
