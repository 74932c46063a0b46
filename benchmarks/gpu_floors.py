"""What the AUGRU cannot be faster than on an H100, and what its kernels are predicted to reach; on paper.

    python benchmarks/gpu_floors.py        prints the tables; report.py writes them into docs/cuda-kernels.md

No figure here was measured. Lengths are ragged, uniform in [T / 4, T], I = H, float32.
"""

from __future__ import annotations

from itertools import product
from math import ceil

BATCHES, STEPS, HIDDEN = (256, 1024, 4096), (100, 200, 1000, 4096), (32, 64, 128, 256)
BANDWIDTH, RATE = 3.35e12, 67e12  # bytes and operations a second
MULTIPROCESSORS, CLOCK, THREADS = 132, 1.755e9, 2048
SHARED = 227 * 1024
# A step's clocks that nothing hides where a block is alone on its multiprocessor: shared memory and exchange of
# sums (100), activations (150), barriers and the loop (100); backward has two barriers and the sum of da beside.
LATENCY = {False: 350, True: 600}
LEAST_STEP = 350 / CLOCK
GEMM_SHARE = 0.6  # of RATE, for tiles of 128 x 64 with 8 x 4 numbers a thread
L2_BYTES = 48  # a clock and multiprocessor, for streamed weights


def floors(rows: float, hidden: int, itemsize: int, backward: bool) -> tuple[float, float]:
    """Milliseconds of memory and of arithmetic.

    Forward reads x and writes states, backward reads both and the gradient of the states and writes that of x; the
    products are 12 H^2 a row forward, and four times that with backward, which computes the gates again.
    """
    numbers = (6 if backward else 2) * rows * hidden
    operations = (48 if backward else 12) * hidden**2 * rows
    return 1e3 * numbers * itemsize / BANDWIDTH, 1e3 * operations / RATE


def scan_seconds(batch: int, steps: int, hidden: int, backward: bool) -> float:
    """One scan: a wave of the longest blocks, or the throughput of all of them, whichever is longer."""
    tile = 8 if batch > 4 * MULTIPROCESSORS else 4
    padded = ceil(hidden / 8) * 8
    resident = padded <= 128
    fused = tile * 3 * hidden**2 / 128
    # Reads of shared memory by a warp, 128 bytes each: weights, and the tile's numbers that they meet.
    reads = padded / 8 * (3 * padded / 8 * 4 if backward else padded / 4 * (3 + tile / 4))
    busy = max(fused, reads)
    if not resident:
        busy = max(busy, 12 * hidden**2 / L2_BYTES) + 40 * ceil(hidden / 128) * ceil(hidden / 16)
    busy += 12 * tile * hidden / 128  # activations
    alone = busy + LATENCY[backward]
    weights = 12 * padded**2 if resident else SHARED / 2
    together = max(1, min(int(SHARED / (weights + 16 * tile * padded)), THREADS // (4 * min(padded, 128))))
    blocks = ceil(batch / tile)
    on_one = min(together, ceil(blocks / MULTIPROCESSORS))
    wave = steps * max(alone, on_one * busy)
    all_blocks = blocks * 0.625 * steps * max(busy, alone / together) / MULTIPROCESSORS
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
                figures = [*least, 1e3 * steps * LEAST_STEP * (2 if backward else 1)]
                time = predicted(batch, steps, hidden, backward)
                cells += [f"{figure:.2g}" if figure < 99 else f"{figure:.0f}" for figure in (*figures, time)]
                cells += [f"{max(figures) / time:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    print(text())
