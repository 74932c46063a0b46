"""Times the recurrence and the interest layer against the providers of ``providers.py``.

    python benchmarks/speed.py [--threads 2] [--rounds 15] [--only PATTERN] [--compile] [--output results.json]

All providers of a size run in turn in one process, after the check that they agree, each for 5 ms or one call;
a figure is the median over the rounds. The results go to ``benchmarks/results/cpu-MACHINE-THREADS-threads.json``;
with ``--only`` they are saved where ``--output`` says, or not at all.

Loops whose tensors pass 32 MiB get them from the system anew at every step, and pay for touching them: most of the
time of some providers. With ``--keep-memory`` the C library keeps what is freed, for all of them alike.
"""

from __future__ import annotations

import re
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from providers import (
    COMPILED_SIZE,
    DENSE_SIZES,
    SIZES,
    WIDE_SIZES,
    Contest,
    Size,
    against_onednn,
    interest,
    recurrence,
)

from dien_fast.functional import attention_gru

WARMUP = 2
LEAST_SECONDS = 5e-3
LONG_SECONDS = 0.5
PASSES = {False: "forward", True: "forward + backward"}


def interleaved(runs: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each provider's calls; each gets the number of its call.

    In a round a provider is called until 5 ms have passed, at least once, and before that once untimed unless that
    takes long: nobody pays for the caches, sleeping threads and memory that another provider left.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    last = dict.fromkeys(runs, 0.0)
    for number in range(rounds + WARMUP):
        for name, run in runs.items():
            if last[name] < LONG_SECONDS:
                run(number)
            calls, begin, passed = 0, time.perf_counter(), 0.0
            while passed < LEAST_SECONDS:
                run(number + 1 + calls)
                calls += 1
                passed = time.perf_counter() - begin
            last[name] = passed / calls
            if number >= WARMUP:
                times[name].append(1e3 * last[name])
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def sgemm_gflops(rounds: int) -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    milliseconds = interleaved({"sgemm": lambda _: a @ b}, rounds)["sgemm"]
    return round(2 * 2048**3 / milliseconds / 1e6, 1)


def call_microseconds(rounds: int, number: int = 2000) -> float:
    """Return the smallest mean time of a call that has next to nothing to compute: B 1, T 1, H 32."""
    x, att, lengths = torch.randn(1, 1, 32), torch.rand(1, 1), torch.ones(1, dtype=torch.int64)
    weights = torch.randn(96, 32), torch.randn(96, 32), torch.randn(96), torch.randn(96)
    with torch.inference_mode():
        times = timeit.repeat(
            lambda: attention_gru(x, att, *weights, lengths=lengths), number=number, repeat=rounds
        )
    return round(1e6 * min(times) / number, 2)


def parts(compiled: bool) -> Iterator[tuple[str, Size, Callable[[], Contest]]]:
    """Yield the name and size of every part, and what sets it up."""
    for size in SIZES + WIDE_SIZES:
        alone = size[0] == 1
        for backward in (False, True):
            if not (alone and backward):
                with_compiler = compiled and size == COMPILED_SIZE
                yield f"AUGRU {PASSES[backward]}", size, partial(recurrence, size, backward, with_compiler)
        if not alone and size not in WIDE_SIZES:
            yield "Interest forward + backward", size, partial(interest, size)
    for size in DENSE_SIZES:
        for backward in (False, True):
            for dense in (True, False):
                name = f"augru_official {PASSES[backward]}, {'dense' if dense else 'ragged'}"
                yield name, size, partial(against_onednn, size, backward, dense)


def rates(part: str, hidden: int, steps: int, milliseconds: dict[str, float]) -> dict[str, float]:
    """Return GFLOP/s, products alone: 12 H^2 N forward, 36 H^2 N with backward, recomputed or not."""
    operations = (36 if "backward" in part else 12) * hidden**2 * steps
    return {name: round(operations / value / 1e6, 1) for name, value in milliseconds.items()}


def measure(part: str, size: Size, contest: Contest, rounds: int) -> dict[str, Any]:
    batch, steps, hidden = size
    times = interleaved(contest.runs, rounds)
    row: dict[str, Any] = {"part": part, "B": batch, "T": steps, "H": hidden, "N": contest.steps}
    row["milliseconds"] = times
    if part.endswith("dense"):
        row["GFLOP/s"] = rates(part, hidden, contest.steps, times)
    if contest.compile_seconds is not None:
        row["compile seconds"] = contest.compile_seconds
    print(f"{part}, B {batch}, T {steps}, H {hidden}")
    for name, value in times.items():
        rate = f"  {row['GFLOP/s'][name]:6.1f} GFLOP/s" if "GFLOP/s" in row else ""
        print(f"    {name:24} {value:10.3f} ms  {value / times['dien-fast']:6.2f}x{rate}", flush=True)
    return row


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each provider (15)")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression: the parts to run, by name")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part: minutes more")
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays in the process")
    parser.add_argument("--output", type=Path, help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        machine.keep_memory()
    result = machine.description(arguments.threads) | {
        "memory kept": arguments.keep_memory,
        "rounds": arguments.rounds,
        "sgemm GFLOP/s": sgemm_gflops(arguments.rounds),
        "call microseconds": call_microseconds(arguments.rounds),
    }
    print(f"sgemm: {result['sgemm GFLOP/s']} GFLOP/s, {arguments.threads} threads")
    print(f"a call of next to nothing: {result['call microseconds']} microseconds", flush=True)
    result["rows"] = [
        measure(part, size, make(), arguments.rounds)
        for part, size, make in parts(arguments.compile)
        if re.search(arguments.only or "", part)
    ]
    if arguments.output or not arguments.only:
        name = f"cpu-{machine.here(arguments.threads)}.json"
        machine.save(result, arguments.output or machine.RESULTS / name)


if __name__ == "__main__":
    main()
