"""The pictures of docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import machine
import matplotlib
import tables
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's.


def path(kind: str, name: str) -> Path:
    return machine.RESULTS / f"{kind}-{name}.svg"


def _save(figure: Figure, to: Path) -> None:
    # A fixed salt gives the same file for the same figures.
    with matplotlib.rc_context({"svg.hashsalt": "speed"}):
        figure.savefig(to, format="svg", metadata={"Date": None})


def draw_speed(speed: dict[str, Any], to: Path) -> None:
    """Draw a point per size and provider; left of the line at 1 dien-fast loses."""
    rows = tables.rows_of(speed)
    panels = [((tables.FORWARD, "augru_official forward, ragged"), "forward")]
    panels += [((tables.BOTH, "augru_official forward + backward, ragged"), "forward + backward")]
    sizes = tables.sizes_of(rows, *(part for parts, _ in panels for part in parts))
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(sizes)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    handles = {}
    for axis, (parts, title) in zip(axes, panels, strict=True):
        for colour, name in zip(COLOURS, ("reference loop", *tables.OTHERS, "oneDNN"), strict=True):
            part = parts[name == "oneDNN"]
            points = [(tables.ratio(rows.get((part, size)), name), at) for at, size in enumerate(sizes)]
            shown = [point for point in points if point[0] is not None]
            if shown:
                handles[name] = axis.scatter(*zip(*shown, strict=True), color=colour, s=28, alpha=0.85)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=title, xscale="log", xlabel="time / time of dien-fast")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.grid(color="#dddddd")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(sizes)), [tables.show_size(size) for size in sizes])
    axes[0].set_ylabel("B, T, H (ragged)")
    axes[0].invert_yaxis()
    labels = [f"{name} (another function)" if name.startswith("nn.GRU") else name for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, to)


def draw_models(
    model: dict[str, Any] | None, peers: dict[str, Any] | None, trainings: dict[str, Any] | None, to: Path
) -> None:
    """Draw a bar for each gain of a whole model or library."""
    bars = tables.gains(model, peers, trainings)
    figure = Figure(figsize=(9, 0.8 + 0.3 * len(bars)), layout="constrained")
    axis = figure.subplots()
    places = range(len(bars))
    colours = [COLOURS[kind] for _, _, kind in bars]
    drawn = axis.barh(places, [gain for _, gain, _ in bars], color=colours, alpha=0.85)
    axis.bar_label(drawn, [tables.show_ratio(gain) for _, gain, _ in bars], padding=3)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(places, [what for what, _, _ in bars])
    axis.invert_yaxis()
    axis.set_xlabel("times as fast")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, to)
