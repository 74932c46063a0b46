"""Bytes, operations and predicted times of the attention scores and the auxiliary loss on an H100; on paper.

    python benchmarks/gpu_layer.py          prints the tables; report.py writes them into docs/cuda-kernels.md
    python benchmarks/gpu_layer.py --count  counts what the plain path moves and keeps, on the CPU, and saves it

No time here was measured. Sizes are those that the layer is built with: 80 and 40 channels of the attention's MLP,
with normalisation and Dice, 100 and 50 of the auxiliary net's; float32, forward and backward, lengths uniform in
[T / 4, T]. The plain path is what runs without the kernels: its bytes are those of the inputs and outputs of every
operator that torch executes, none of which are fused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from gpu_floors import BANDWIDTH, GEMM_SHARE, RATE

COUNTS = Path(__file__).parent / "results" / "plain-path.json"
SCORES, LOSS = (80, 40), (100, 50)
HIDDEN = (32, 64, 128)
BATCHES = ((256, 100), (1024, 100), (256, 1000), (1024, 1000), (1024, 4096))
TILE_ROWS, TILE_COLUMNS = 64, 64  # of gemm.cuh
LAUNCH = 3e-6  # seconds
LAUNCHES = {"scores": 45, "loss": 25}
MEMORY_SHARE = 0.8  # of BANDWIDTH that a pass over the rows reaches, a guess
LARGEST = (1024, 4096, 64)  # B, T, H whose training is to fit


@dataclass(frozen=True)
class Pass:
    """A kernel's work on a row: the numbers that it reads and writes, and its multiplications and additions.

    Attributes:
        numbers: of a row, each counted once.
        operations: of a row.
        columns: of the product, which come in tiles; 0 for a kernel that is none.
        rows: of the product where those are few, as in gradients of weights; 0 where they are the batch's.
        own_tiles: whether no tile has rows of two histories.
    """

    numbers: float
    operations: float = 0
    columns: int = 0
    rows: int = 0
    own_tiles: bool = False

    def seconds(self, rows: float, length: float) -> float:
        """Time for so many rows, in histories of a mean length."""
        fill = 1.0
        if self.columns:
            fill = self.columns / (ceil(self.columns / TILE_COLUMNS) * TILE_COLUMNS)
        if self.rows:
            fill *= self.rows / (ceil(self.rows / TILE_ROWS) * TILE_ROWS)
        if self.own_tiles:
            fill *= length / (ceil(length / TILE_ROWS) * TILE_ROWS)
        arithmetic = self.operations / (RATE * GEMM_SHARE * fill)
        return rows * max(arithmetic, 4 * self.numbers / (BANDWIDTH * MEMORY_SHARE))


def scores_passes(depth: int) -> Iterator[Pass]:
    """The kernels of csrc/cuda/attention_scores on the rows, forward and backward."""
    first, second = SCORES
    key = Pass(depth + first, 2 * depth * first, first, own_tiles=True)
    layer = Pass(first + second, 2 * first * second, second)
    yield from (key, Pass(first), layer, Pass(second), Pass(second + 1), Pass(3))  # forward
    yield from (key, layer, Pass(3))  # again, and the softmax's gradient
    yield from (Pass(second), Pass(2 * second))  # sums of the second layer's channels, dx
    yield Pass(first + second, 2 * first * second, first, rows=second)  # gradient of the second weight
    yield Pass(first + second, 2 * first * second, first)
    yield from (Pass(2 * first), Pass(3 * first))
    yield Pass(first + depth, 2 * depth * first, depth, own_tiles=True)
    yield Pass(first + depth, 2 * depth * first, depth, rows=first)


def loss_passes(depth: int) -> Iterator[Pass]:
    """The kernels of csrc/cuda/auxiliary_loss, on two pairs a row."""
    first, second = LOSS
    yield Pass(3 * depth + 2 * first, 2 * 4 * depth * first, first)
    yield Pass(2 * (first + second), 2 * 2 * first * second, second)
    yield from (Pass(2 * second + 2), Pass(4 * second + 2))
    yield Pass(2 * (first + second), 2 * 2 * first * second, first, rows=second)
    yield Pass(2 * (2 * first + second), 2 * 2 * first * second, first)
    yield Pass(3 * depth + 2 * first, 2 * 4 * depth * first, 2 * depth, rows=first)
    yield from (
        Pass(2 * first + depth, 2 * depth * first, depth),
        *[Pass(first + depth, 2 * depth * first, depth)] * 2,
    )


PASSES: dict[str, Callable[[int], Iterator[Pass]]] = {"scores": scores_passes, "loss": loss_passes}
NAMES = {"scores": "attention scores", "loss": "auxiliary loss"}


def predicted(function: str, batch: int, steps: int, depth: int) -> float:
    """Milliseconds of forward and backward."""
    length = 0.625 * steps
    seconds = sum(one.seconds(batch * length, length) for one in PASSES[function](depth))
    return 1e3 * (seconds + LAUNCHES[function] * LAUNCH)


def plain_floor(function: str, batch: int, steps: int, depth: int) -> float:
    """Milliseconds that memory takes the plain path at least."""
    return 1e3 * 0.625 * batch * steps * plain(function, depth)["moved"] / BANDWIDTH


def plain(function: str, depth: int) -> dict[str, float]:
    """What was counted of the plain path: bytes of a row."""
    found: dict[str, float] = json.loads(COUNTS.read_text())[f"{function}-{depth}"]
    return found


def training_bytes(rows: float, depth: int) -> dict[str, float]:
    """Memory of a training step of the layer in its fullest moments, by name; H = D.

    Held throughout are events, negatives and the extractor's states; until the end of their backward, the second
    recurrence's states and the auxiliary loss's three gradients.
    """
    row, chunk = 4 * depth, 256 << 20
    first, second = SCORES
    kept = 3 * row + 3 * row + 4
    return {
        "forward of the scores": rows * (kept + 4 * (first + second)),
        "backward of the second recurrence": rows * (kept + row + 2 * row + 4) + chunk,
        "backward of the scores": rows * (kept + 2 * row + 4 * (2 * first + second + 2)),
        "backward of the auxiliary loss": rows * (kept + 3 * row + 2 * row),
        "backward of the extractor": rows * (3 * row + 3 * row + 2 * row) + chunk,
    }


# ---- Counting what the plain path does ----


def count(function: str, depth: int, rows: int) -> tuple[int, int]:
    """Bytes moved by forward and backward, and bytes kept between them, for so many rows in histories of 50."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import dien_fast
    from dien_fast import Interest, Ragged

    class Moved(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operator(*args, **(kwargs or {}))
            aliases = [value.alias_info for value in operator._schema.returns]
            if not any(alias is not None and not alias.is_write for alias in aliases):
                values, _ = torch.utils._pytree.tree_flatten((args, result))
                self.total += sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
            return result

    kept: dict[int, Any] = {}

    def keep(value: Any) -> Any:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    layer = Interest(depth, use_negsampling=True, att_activation="dice")
    offsets = torch.arange(0, rows + 1, 50)
    query = torch.randn(rows // 50, depth, requires_grad=True)
    states, events, negatives = (torch.randn(rows, depth, requires_grad=True) for _ in range(3))
    leaves = [query, states, events, negatives, *layer.parameters(), *layer.buffers()]
    given = {value.untyped_storage().data_ptr() for value in leaves}
    ragged = Ragged(states, offsets, 50)
    with dien_fast.use_backend("reference"), Moved() as moved:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            if function == "scores":
                output = layer.attention.ragged_scores(query, ragged)
            else:
                output = layer.auxiliary_net.ragged_loss(ragged, events, negatives)
        held = sum(storage.nbytes() for address, storage in kept.items() if address not in given)
        output.backward(torch.ones_like(output))
    return moved.total, held


def count_all() -> dict[str, dict[str, float]]:
    """Of a row: the difference between two batches, so that what a batch costs once is left out."""
    found = {}
    for function in PASSES:
        for depth in HIDDEN:
            small, large = count(function, depth, 2000), count(function, depth, 4000)
            moved, kept = ((b - a) / 2000 for a, b in zip(small, large, strict=True))
            found[f"{function}-{depth}"] = {"moved": moved, "kept": kept}
    return found


# ---- Tables ----


def figure(number: float) -> str:
    return f"{number:.2g}" if number < 99 else f"{number:,.0f}"


def text() -> str:
    """Return the tables."""
    lines = ["| of a row | H | operations | bytes, plain | bytes, kernels | kept, plain | kept, kernels |"]
    lines.append("|---" * 7 + "|")
    for function, passes in PASSES.items():
        for depth in HIDDEN:
            counted = plain(function, depth)
            kept = 4 if function == "scores" else 3 * 4 * depth
            cells = [sum(one.operations for one in passes(depth)), counted["moved"]]
            cells += [4 * sum(one.numbers for one in passes(depth)), counted["kept"], kept]
            figures = " | ".join(f"{cell:,.0f}" for cell in cells)
            lines.append(f"| {NAMES[function]} | {depth} | {figures} |")
    head = "| B, T | H"
    for name in NAMES.values():
        head += f" | {name}: predicted | bytes of the plain path"
    lines += ["", head + " |", "|---" * 6 + "|"]
    for batch, steps in BATCHES:
        for depth in HIDDEN:
            cells = [f"{batch}, {steps}", str(depth)]
            for function in PASSES:
                cells += [figure(predicted(function, batch, steps, depth))]
                cells += [figure(plain_floor(function, batch, steps, depth))]
            lines.append("| " + " | ".join(cells) + " |")
    batch, steps, depth = LARGEST
    lines += ["", "| in GB | lengths uniform in [T / 4, T] | all full |", "|---|---|---|"]
    for name in training_bytes(1, depth):
        sizes = (training_bytes(share * batch * steps, depth)[name] / 1e9 for share in (0.625, 1))
        lines.append(f"| {name} | " + " | ".join(f"{size:.1f}" for size in sizes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true")
    if parser.parse_args().count:
        COUNTS.write_text(json.dumps(count_all(), indent=1) + "\n")
    print(text())
