"""Times the recurrence and the interest layer against the reference loop, torch.nn.GRU and oneDNN.

    python benchmarks/speed.py [--threads 2] [--rounds 15] [--output results.json]

All providers of a size run in turn in one process, after a check that they agree; a figure is the median over
the rounds. Lengths are ragged (uniform in [T / 4, T], seed 0, one of them T) except where a part says dense.
Inputs and weights rotate between rounds. ``nn.GRU`` computes another function (it has no attention); it stands
for what torch itself can do. oneDNN is ``lbr_augru`` of oneDNN 3.2 (the cell ``augru_official``) on padded input,
the reorder of its weights included; its gradients are wrong, so its backward is timed, not checked.
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
from onednn import OneDnnAugru
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import dien_fast
from dien_fast import reference
from dien_fast.functional import attention_gru

SIZES = [(128, 50, 32), (256, 100, 36), (1024, 100, 64), (64, 1000, 64), (1, 50, 32)]
# For the comparison with oneDNN.
DENSE_SIZES = [
    (128, 20, 16),
    (1024, 50, 32),
    (256, 100, 36),
    (1024, 100, 64),
    (256, 200, 128),
    (64, 1000, 64),
    (1, 50, 32),
]
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


def against_onednn(
    batch: int, steps: int, hidden: int, backward: bool, dense: bool
) -> dict[str, Callable[[int], object]]:
    torch.manual_seed(0)
    lengths = torch.full((batch,), steps) if dense else lengths_of(batch, steps)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    valid = torch.arange(steps) < lengths.unsqueeze(1)
    cells = [dien_fast.AttentionUpdateGateGRUCell(hidden, hidden) for _ in range(VARIANTS)]
    weights = [(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh) for cell in cells]
    inputs = [(torch.randn(batch, steps, hidden), torch.rand(batch, steps)) for _ in range(VARIANTS)]
    rows = [(x[valid].requires_grad_(), att[valid].requires_grad_()) for x, att in inputs]
    major = [(x.transpose(0, 1).contiguous(), att.t().contiguous()) for x, att in inputs]
    onednn = OneDnnAugru(steps, batch, hidden, backward)

    def run_native(number: int) -> Tensor:
        (x, att), parameters = rows[number % VARIANTS], weights[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            states, _ = attention_gru(x, att, *parameters, offsets=offsets, cell="augru_official")
            assert states is not None
            if backward:
                torch.autograd.grad(states, [x, att, *parameters], torch.ones_like(states))
        return states.detach()

    def run_onednn(number: int) -> Tensor:
        (x, att), parameters = major[number % VARIANTS], weights[number % VARIANTS]
        states = onednn.forward(x, att, *parameters)
        if backward:
            onednn.backward(x, att, *parameters[:2], torch.ones_like(states))
        return states

    torch.testing.assert_close(run_native(0), run_onednn(0).transpose(0, 1)[valid], rtol=1e-4, atol=1e-5)
    return {"oneDNN": run_onednn, "dien-fast": run_native}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    peak = sgemm_gflops(arguments.rounds)
    print(f"sgemm: {peak:.1f} GFLOP/s, {arguments.threads} threads")

    def measure(part: str, size: tuple[int, int, int], providers: dict[str, Callable[[int], object]]) -> None:
        times = interleaved(providers, arguments.rounds)
        rows.append({"part": part, "B": size[0], "T": size[1], "H": size[2], "milliseconds": times})
        first = next(iter(times))
        shown = "  ".join(f"{name} {value:.3f} ms" for name, value in times.items())
        print(
            f"{part}, B {size[0]}, T {size[1]}, H {size[2]}: {times[first] / times['dien-fast']:.1f}x  ({shown})",
            flush=True,
        )

    for batch, steps, hidden in SIZES:
        parts = {"AUGRU forward": recurrence(batch, steps, hidden, backward=False)}
        if batch > 1:
            parts["AUGRU forward + backward"] = recurrence(batch, steps, hidden, backward=True)
            parts["Interest forward + backward"] = interest(batch, steps, hidden)
        for part, providers in parts.items():
            measure(part, (batch, steps, hidden), providers)
    for size in DENSE_SIZES:
        for backward in (False, True):
            for dense in (True, False):
                what = "forward + backward" if backward else "forward"
                part = f"AUGRU {what}, {'dense' if dense else 'ragged'}, oneDNN"
                providers = against_onednn(*size, backward=backward, dense=dense)
                measure(part, size, providers)
                if dense:
                    steps = size[0] * size[1]
                    operations = (36 if backward else 12) * size[2] ** 2 * steps
                    rate = operations / rows[-1]["milliseconds"]["dien-fast"] / 1e6
                    rows[-1]["GFLOP/s"] = round(rate, 1)
                    print(f"    {rate:.1f} GFLOP/s, {100 * rate / peak:.0f} % of sgemm")
    result = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "dien-fast": dien_fast.__version__,
        "backend": str(dien_fast.backend()),
        "commit": commit.stdout.strip(),
        "sgemm GFLOP/s": round(peak, 1),
        "rows": rows,
    }
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
