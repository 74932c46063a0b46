"""What the AUGRU cannot be faster than on an H100, and what its kernels are predicted to reach; on paper.

    python benchmarks/gpu_floors.py        prints the tables; report.py writes them into docs/cuda-kernels.md

No figure here was measured. Lengths are ragged, uniform in [T / 4, T], I = H, float32. The clocks of a step are
those that issue_clocks.py counted in the code for sm_90.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

BATCHES, STEPS, HIDDEN = (256, 1024, 4096), (100, 200, 1000, 4096), (32, 64, 128, 256)
BANDWIDTH, RATE = 3.35e12, 67e12  # bytes and operations a second
MULTIPROCESSORS, CLOCK, THREADS = 132, 1.755e9, 2048
SHARED = 227 * 1024
COUNTS = Path(__file__).parent / "results" / "issue-clocks.json"
GEMM_SHARE = 0.6  # of RATE; its loop's instructions allow 0.68
L2_BYTES = 48  # a clock and multiprocessor, for streamed weights


def floors(rows: float, hidden: int, itemsize: int, backward: bool) -> tuple[float, float]:
    """Milliseconds of memory and of arithmetic.

    Forward reads x and writes states, backward reads both and the gradient of the states and writes that of x; the
    products are 12 H^2 a row forward, and four times that with backward, which computes the gates again.
    """
    numbers = (6 if backward else 2) * rows * hidden
    operations = (48 if backward else 12) * hidden**2 * rows
    return 1e3 * numbers * itemsize / BANDWIDTH, 1e3 * operations / RATE


@cache
def counted(hidden: int, tile: int, backward: bool) -> dict[str, Any]:
    """What issue_clocks.py counted of a step for sm_90, with resident weights where they fit."""
    wanted = {
        "kernel": "backward" if backward else "forward",
        "architecture": 90,
        "hidden": hidden,
        "histories": tile,
    }
    rows = [row for row in json.loads(COUNTS.read_text())["rows"] if wanted.items() <= row.items()]
    return max(rows, key=lambda row: row["resident"])


def alone(hidden: int, tile: int, backward: bool) -> float:
    """Clocks of a step of a block that has a multiprocessor for itself."""
    row = counted(hidden, tile, backward)
    return row.get("modelled", max(row["issue"], *row["busiest unit"].values()))


def steps_seconds(steps: int, hidden: int, backward: bool) -> float:
    """The longest history's steps, one after the other, with the smaller tile."""
    clocks = alone(hidden, 4, False) + (alone(hidden, 4, True) if backward else 0)
    return steps * clocks / CLOCK


def scan_seconds(batch: int, steps: int, hidden: int, backward: bool) -> float:
    """One scan: a wave of the longest blocks, or the throughput of all of them, whichever is longer."""
    padded = ceil(hidden / 8) * 8
    tile = 8 if batch * min(padded, 128) > 512 * MULTIPROCESSORS else 4
    row = counted(hidden, tile, backward)
    resident = row["resident"]
    # Reads of shared memory by a warp, 128 bytes each: weights, and the tile's numbers that they meet.
    reads = padded / 8 * (3 * padded / 8 * 4 if backward else padded / 4 * (3 + tile / 4))
    busy = max(row["issue"], *row["busiest unit"].values(), reads)
    if not resident:
        busy = max(busy, 12 * hidden**2 / L2_BYTES)
    one_block = max(busy, alone(hidden, tile, backward))
    weights = 12 * padded**2 if resident else SHARED / 2
    together = max(1, min(int(SHARED / (weights + 16 * tile * padded)), THREADS // (4 * min(padded, 128))))
    blocks = ceil(batch / tile)
    on_one = min(together, ceil(blocks / MULTIPROCESSORS))
    wave = steps * max(one_block, on_one * busy)
    all_blocks = blocks * 0.625 * steps * max(busy, one_block / together) / MULTIPROCESSORS
    return max(wave, all_blocks) / CLOCK


def predicted(batch: int, steps: int, hidden: int, backward: bool) -> float:
    """Milliseconds of forward, or of forward and backward."""
    rows = 0.625 * batch * steps
    products = (36 if backward else 6) * hidden**2 * rows / (GEMM_SHARE * RATE)
    scans = scan_seconds(batch, steps, hidden, False)
    if backward:
        scans += scan_seconds(batch, steps, hidden, True)
    launches = (30 if backward else 10) * 3e-6
    return 1e3 * (products + scans + launches)


def text() -> str:
    """Return a table for each hidden size."""
    lines = []
    for hidden in HIDDEN:
        lines += [f"### H = {hidden}", ""]
        lines += ["| B, T" + " | bytes | operations | steps | predicted | share" * 2 + " |", "|---" * 11 + "|"]
        for batch, steps in product(BATCHES, STEPS):
            cells = [f"{batch}, {steps}"]
            for backward in (False, True):
                least = floors(0.625 * batch * steps, hidden, 4, backward)
                figures = [*least, 1e3 * steps_seconds(steps, hidden, backward)]
                time = predicted(batch, steps, hidden, backward)
                cells += [f"{figure:.2g}" if figure < 99 else f"{figure:.0f}" for figure in (*figures, time)]
                cells += [f"{max(figures) / time:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    print(text())
