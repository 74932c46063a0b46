"""Pictures of a run: the course of training, and what a model attends to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dien_fast.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DPI = 150


def plot_history(history: pd.DataFrame, directory: str | Path) -> tuple[Path, Path]:
    """Draw the loss and the AUC over the epochs, training and validation, with the best epoch marked.

    Args:
        history: as returned by :func:`dien_fast.training.fit`.
        directory: where ``loss.png`` and ``auc.png`` are written, each atomically.

    Returns:
        The two paths.

    Example:
        >>> plot_history(history, "runs/ml-100k")  # doctest: +SKIP
    """
    paths = (Path(directory) / "loss.png", Path(directory) / "auc.png")
    for name, title, path in zip(("loss", "auc"), ("Loss", "AUC"), paths, strict=True):
        figure, axes = _figure(6.4, 4.0)
        _draw_curves(axes, history, name)
        axes.set(title=f"{title} by epoch", xlabel="epoch", ylabel=title)
        _save(figure, path)
    return paths


def plot_comparison(table: pd.DataFrame, path: str | Path) -> Path:
    """Draw the mean test AUC of each variant with its standard deviation over the seeds.

    Args:
        table: from :func:`dien_fast.training.comparison.summary`.
        path: the PNG to write.

    Example:
        >>> plot_comparison(table, "table.png")  # doctest: +SKIP
    """
    figure, axes = _figure(7.0, 1.2 + 0.36 * len(table))
    places = np.arange(len(table))
    spread = table["auc_std"].fillna(0.0)
    axes.errorbar(table["auc"], places, xerr=spread, fmt="o", color=_COLOURS[0], capsize=3)
    axes.axvline(table["auc"][0], color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(places, table["variant"])
    axes.invert_yaxis()
    axes.set(xlabel="test AUC, mean and standard deviation over the seeds")
    return _save(figure, Path(path))


def plot_attention(
    scores: np.ndarray, candidates: Sequence[str], steps: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw which steps of a history each candidate attends to, as a heat map.

    Source: the right half of figure 5 of the DIEN paper (arXiv 1809.03672).

    Args:
        scores: ``[C, T]`` attention in [0, 1], one row per candidate.
        candidates: ``[C]`` names.
        steps: ``[T]`` names of the history's items, oldest first.
        path: the PNG to write.
        title: printed above.

    Example:
        >>> plot_attention(np.array([[0.2, 0.8]]), ["50"], ["172", "181"], "attention.png")  # doctest: +SKIP
    """
    count, length = scores.shape
    figure, axes = _figure(min(18.0, max(5.5, 2.6 + 0.34 * length)), 1.9 + 0.42 * count)
    image = axes.imshow(scores, aspect="auto", cmap="Blues", vmin=0.0, interpolation="nearest")
    axes.set_xticks(range(length), [_shorten(name) for name in steps], rotation=90, fontsize=8)
    axes.set_yticks(range(count), [_shorten(name, 34) for name in candidates], fontsize=9)
    axes.set(xlabel="items of the history, oldest first", title=title)
    # White lines between the cells, so that neighbours of one shade stay apart.
    axes.set_xticks(np.arange(length + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.grid(which="major", visible=False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("attention")
    bar.outline.set_visible(False)
    return _save(figure, path)


def plot_interest(states: np.ndarray, candidates: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draw how the evolved interest moves along the history, one path per candidate.

    The states of all candidates are projected together on their first two principal components, so that
    the paths are comparable. All begin at the zero state. Source: the left half of figure 5 of the DIEN
    paper (arXiv 1809.03672).

    Args:
        states: ``[C, T, H]`` interest states after each step, one path per candidate.
        candidates: ``[C]`` names.
        path: the PNG to write.
        title: printed above.

    Example:
        >>> plot_interest(np.random.rand(2, 9, 16), ["50", "181"], "interest.png")  # doctest: +SKIP
    """
    points, explained = _principal_plane(states)
    figure, axes = _figure(7.2, 5.4)
    for number, (name, path_points) in enumerate(zip(candidates, points, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(path_points[:, 0], path_points[:, 1], color=colour, linewidth=1.1, alpha=0.45)
        # Later states are larger and stronger: the eye follows the direction without arrows.
        age = np.linspace(0.0, 1.0, len(path_points) - 1) if len(path_points) > 2 else np.ones(1)
        axes.scatter(
            path_points[1:, 0],
            path_points[1:, 1],
            s=10 + 26 * age,
            color=colour,
            alpha=0.25 + 0.6 * age,
            linewidths=0,
        )
        axes.scatter(
            *path_points[-1], s=130, color=colour, edgecolors="white", linewidths=1.4, zorder=4, label=name
        )
    axes.scatter(*points[0, 0], s=90, marker="X", color="#444444", zorder=5, label="start")
    axes.set(
        title=title,
        xlabel=f"first principal component ({explained[0]:.0%} of the variance)",
        ylabel=f"second ({explained[1]:.0%})",
    )
    axes.legend(title="candidate (large dot: last state)", fontsize=8, title_fontsize=8, frameon=False)
    axes.margins(0.08)
    return _save(figure, path)


def _principal_plane(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[C, T + 1, 2]`` paths from the zero state on, in the two main directions, and their shares."""
    count, _, hidden = states.shape
    paths = np.concatenate([np.zeros((count, 1, hidden)), states.astype(np.float64)], axis=1)
    centred = paths - paths.mean(axis=(0, 1))
    _, singular, directions = np.linalg.svd(centred.reshape(-1, hidden), full_matrices=False)
    share = singular**2 / max(float((singular**2).sum()), np.finfo(np.float64).tiny)
    plane = np.zeros((hidden, 2))
    plane[:, : min(2, len(directions))] = directions[:2].T
    return centred @ plane, np.append(share, [0.0, 0.0])[:2]


def _draw_curves(axes: Axes, history: pd.DataFrame, name: str) -> None:
    """Draw train_<name> and, where there is one, valid_<name> with its best epoch."""
    epochs = history["epoch"]
    axes.plot(epochs, history[f"train_{name}"], "o--", color=_COLOURS[0], markersize=4, label="training")
    if f"valid_{name}" in history:
        valid = history[f"valid_{name}"]
        axes.plot(epochs, valid, "o-", color=_COLOURS[1], markersize=4, label="validation")
        # Early stopping goes by the AUC, so the best epoch is the same one in both pictures.
        best = history["valid_auc"].idxmax()
        axes.axvline(epochs[best], color="#888888", linewidth=1, linestyle=":")
        axes.plot(
            epochs[best],
            valid[best],
            "*",
            color=_COLOURS[1],
            markersize=15,
            markeredgecolor="white",
            label=f"best epoch {epochs[best]:.0f}: {valid[best]:.4f}",
        )
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of ``width`` x ``height`` inches and its axes.

    It is made without pyplot, so that neither a display nor the caller's backend plays a part.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need Matplotlib: pip install "dien-fast[train]"') from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> Path:
    with write_atomically(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return Path(path)


def _shorten(name: str, most: int = 18) -> str:
    """Cut a long word, but not the marks behind it."""
    marks = re.search(r"(?: \(unknown\))?(?:  \(p = [\d.]+\))?$", name)
    assert marks is not None
    word, kept = name[: marks.start()], marks.group()
    return (word if len(word) <= most else f"{word[: most - 1]}…") + kept
