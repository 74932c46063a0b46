"""The tables of what benchmarks/gpu.sh measured, beside the predictions; report.py writes them into
docs/cuda-kernels.md.

    python benchmarks/gpu_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gpu_floors
import gpu_layer

RESULTS = Path(__file__).parent / "results" / "gpu-h200.json"
GRU = ("nn.GRU padded (another function)", "nn.GRU packed (another function)")
SHORT = {name: short for short, name in gpu_layer.NAMES.items()}


def figure(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 99.5 else f"{number:.3g}"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


class Measured:
    """Milliseconds and bytes by what was run."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.rows = {(row["function"], tuple(row["size"]), row["dtype"], row["provider"]): row for row in results}

    def sizes(self, function: str, dtype: str = "float32") -> list[tuple[int, int, int]]:
        return [key[1] for key in self.rows if key[0::2] == (function, dtype) and key[3] == "dien-fast"]

    def milliseconds(self, function: str, size: Any, dtype: str, provider: str) -> float | None:
        row = self.rows.get((function, size, dtype, provider))
        return None if row is None else row["milliseconds"]

    def memory(self, function: str, size: Any, dtype: str, provider: str) -> str:
        row = self.rows.get((function, size, dtype, provider))
        return "" if row is None else f"{row['bytes'] / 1e9:.3g}"


def recurrences(measured: Measured) -> str:
    sizes = sorted(measured.sizes("forward + backward"), key=lambda size: (size[2], size[0], size[1]))
    rows = []
    for size in sizes:
        cells = [str(size[2]), f"{size[0]}, {size[1]}"]
        for function, backward in (("forward", False), ("forward + backward", True)):
            providers = ("dien-fast", *GRU, *["reference loop"] * backward)
            found = [measured.milliseconds(function, size, "float32", name) for name in providers]
            found.insert(1, gpu_floors.predicted(*size, backward))
            cells += map(figure, found)
        rows.append(cells)
    head = "H | B, T | forward | predicted | nn.GRU padded | packed"
    head += " | forward and backward | predicted | nn.GRU padded | packed | loop"
    return table(head, rows)


def half_precision(measured: Measured) -> str:
    rows = []
    for size in sorted(measured.sizes("forward + backward", "bfloat16"), key=lambda size: size[2]):
        if size[:2] not in ((1024, 100), (256, 1000), (4096, 1000), (1024, 1000)):
            continue
        cells = [str(size[2]), f"{size[0]}, {size[1]}"]
        for dtype in ("float32", "bfloat16"):
            found = [measured.milliseconds("forward + backward", size, dtype, n) for n in ("dien-fast", GRU[0])]
            cells += map(figure, found)
        rows.append(cells)
    return table("H | B, T | float32 | nn.GRU padded | bfloat16 | nn.GRU padded", rows)


def operators(measured: Measured) -> str:
    rows = []
    for function in SHORT:
        for size in measured.sizes(function):
            time = [
                measured.milliseconds(function, size, "float32", provider)
                for provider in ("dien-fast", "plain PyTorch")
            ]
            time.insert(1, gpu_layer.predicted(SHORT[function], *size))
            memory = [measured.memory(function, size, "float32", name) for name in ("dien-fast", "plain PyTorch")]
            rows.append([function, f"{size[0]}, {size[1]}, {size[2]}", *map(figure, time), *memory])
    for size in measured.sizes("Interest"):
        time = [measured.milliseconds("Interest", size, "float32", name) for name in ("dien-fast", "reference")]
        memory = [measured.memory("Interest", size, "float32", name) for name in ("dien-fast", "reference")]
        cells = [figure(time[0]), "", figure(time[1]), *memory]
        rows.append(["whole layer, beside the reference", f"{size[0]}, {size[1]}, {size[2]}", *cells])
    return table("| B, T, H | kernels | predicted | plain PyTorch | GB, kernels | GB, plain".strip(), rows)


def text() -> str:
    """Return the tables."""
    result = json.loads(RESULTS.read_text())
    measured = Measured(result["results"])
    gpu, versions = result["gpu"], result["versions"]
    conditions = f"{gpu['name']} ({gpu['multiprocessors']} multiprocessors), CUDA {result['cuda']}, "
    conditions += f"torch {versions['torch']}, Python {versions['python']}; `benchmarks/results/{RESULTS.name}`."
    parts = [conditions, recurrences(measured), half_precision(measured), operators(measured)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(text())
