"""Times the recurrence and the interest layer against the reference loop and torch.nn.GRU.

    python benchmarks/speed.py [--threads 2] [--rounds 15] [--output results.json]

All providers of a size run in turn in one process, after a check that they agree; a figure is the median over
the rounds. Lengths are ragged: uniform in [T / 4, T], seed 0, one of them T. Inputs and weights rotate between
rounds. ``nn.GRU`` computes another function (it has no attention); it stands for what torch itself can do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import dien_fast
from dien_fast import reference

SIZES = [(128, 50, 32), (256, 100, 36), (1024, 100, 64), (64, 1000, 64), (1, 50, 32)]
VARIANTS = 3


def lengths_of(batch: int, steps: int) -> Tensor:
    lengths = torch.randint(steps // 4, steps + 1, (batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = steps
    return lengths


def interleaved(providers: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each provider; each gets the number of its round."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for number in range(rounds + 2):
        for name, run in providers.items():
            begin = time.perf_counter()
            run(number)
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def sgemm_gflops(rounds: int) -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    milliseconds = interleaved({"sgemm": lambda _: a @ b}, rounds)["sgemm"]
    return 2 * 2048**3 / milliseconds / 1e6


def recurrence(batch: int, steps: int, hidden: int, backward: bool) -> dict[str, Callable[[int], object]]:
    torch.manual_seed(0)
    lengths = lengths_of(batch, steps)

    def pack(value: Tensor) -> PackedSequence:
        return pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=False)

    eager = [reference.DynamicGRU(hidden, hidden, gru_type="AUGRU") for _ in range(VARIANTS)]
    native = [dien_fast.DynamicGRU(hidden, hidden, gru_type="AUGRU") for _ in range(VARIANTS)]
    torch_gru = [nn.GRU(hidden, hidden, batch_first=True) for _ in range(VARIANTS)]
    for one, other in zip(native, eager, strict=True):
        one.load_state_dict(other.state_dict())
    inputs = [
        (pack(torch.randn(batch, steps, hidden).requires_grad_()), pack(torch.rand(batch, steps)))
        for _ in range(VARIANTS)
    ]
    torch.testing.assert_close(native[0](*inputs[0]).data, eager[0](*inputs[0]).data, rtol=1e-4, atol=1e-5)

    def run(modules: list[nn.Module], number: int, attention: bool) -> None:
        module, (x, att) = modules[number % VARIANTS], inputs[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            states = module(x, att) if attention else module(x)[0]
            if backward:
                torch.autograd.grad(states.data, [x.data, *module.parameters()], torch.ones_like(states.data))

    return {
        "reference loop": lambda number: run(eager, number, True),
        "nn.GRU packed": lambda number: run(torch_gru, number, False),
        "dien-fast": lambda number: run(native, number, True),
    }


def interest(batch: int, steps: int, hidden: int) -> dict[str, Callable[[int], object]]:
    torch.manual_seed(0)
    lengths = lengths_of(batch, steps)
    valid = (torch.arange(steps) < lengths.unsqueeze(1)).unsqueeze(-1)
    eager = [reference.Interest(hidden, use_negsampling=True) for _ in range(VARIANTS)]
    native = [dien_fast.Interest(hidden, use_negsampling=True) for _ in range(VARIANTS)]
    for one, other in zip(native, eager, strict=True):
        one.load_state_dict(other.state_dict())
    inputs = [
        tuple(
            value.requires_grad_()
            for value in (
                torch.randn(batch, hidden),
                torch.randn(batch, steps, hidden) * valid,
                torch.randn(batch, steps, hidden) * valid,
            )
        )
        for _ in range(VARIANTS)
    ]

    def run(modules: list[nn.Module], number: int) -> Tensor:
        module, (query, keys, negatives) = modules[number % VARIANTS], inputs[number % VARIANTS]
        output, loss = module(query, keys, lengths, negatives)
        total = output.sum() + loss
        torch.autograd.grad(total, [query, keys, negatives, *module.parameters()])
        return total.detach()

    torch.testing.assert_close(run(native, 0), run(eager, 0), rtol=1e-3, atol=1e-3)
    return {
        "reference loop": lambda number: run(eager, number),
        "dien-fast": lambda number: run(native, number),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    for batch, steps, hidden in SIZES:
        parts = {"AUGRU forward": recurrence(batch, steps, hidden, backward=False)}
        if batch > 1:
            parts["AUGRU forward + backward"] = recurrence(batch, steps, hidden, backward=True)
            parts["Interest forward + backward"] = interest(batch, steps, hidden)
        for part, providers in parts.items():
            times = interleaved(providers, arguments.rounds)
            rows.append({"part": part, "B": batch, "T": steps, "H": hidden, "milliseconds": times})
            ratio = times["reference loop"] / times["dien-fast"]
            shown = "  ".join(f"{name} {value:.3f} ms" for name, value in times.items())
            print(f"{part}, B {batch}, T {steps}, H {hidden}: {ratio:.1f}x  ({shown})", flush=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "dien-fast": dien_fast.__version__,
        "backend": str(dien_fast.backend()),
        "commit": commit.stdout.strip(),
        "sgemm GFLOP/s": round(sgemm_gflops(arguments.rounds), 1),
        "rows": rows,
    }
    print(f"sgemm: {result['sgemm GFLOP/s']} GFLOP/s")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
