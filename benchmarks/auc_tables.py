"""The tables of docs/models.md, from what ``auc.py`` saved."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from tables import table

from dien_fast.training.comparison import markdown, summary

# The tasks, and what the columns of the overview are called.
COLUMNS = {
    "next-popularity": "next film, others drawn by popularity",
    "next-uniform": "next film, others drawn uniformly",
    "synthetic": "drifting interests, synthetic",
    "rating": "rating above 3?",
}
ABLATIONS = ("auxiliary-popularity", "auxiliary-uniform", "auxiliary-tables", "auxiliary-order")

Measured = dict[str, dict[str, Any]]  # by task


def complete(result: dict[str, Any], variants: int) -> dict[str, Any]:
    """Return a result with the trainings of those seeds alone that each of so many variants has."""
    seeds = [row["seed"] for row in result["rows"]]
    return {**result, "rows": [row for row in result["rows"] if seeds.count(row["seed"]) == variants]}


def shown(variant: str) -> str:
    """Return a variant's name without what all of them have.

    "DIEN, gru_type AGRU, negatives none" is "DIEN, AGRU, no auxiliary loss".
    """
    name = variant.replace("gru_type ", "").replace(", negatives uniform", "")
    return name.replace("negatives none", "no auxiliary loss")


def summarised(result: dict[str, Any], baseline: str) -> pd.DataFrame:
    """Return a row for each variant, in the order of the trainings."""
    seconds = result.get("epoch seconds", {})
    rows = pd.DataFrame(result["rows"])
    rows["epoch_seconds"] = rows["variant"].map(seconds).astype(float)
    return summary(rows, baseline)


def overview(found: Measured) -> str:
    """Return the mean test AUC of each variant in each task; bold where it is the best of its column.

    Without the auxiliary loss, AUGRU stands for all.
    """
    tasks = [name for name in COLUMNS if name in found]
    means = {name: _shown_there(summarised(found[name], "DIN").set_index("variant")) for name in tasks}
    variants = sorted({variant for rows in means.values() for variant in rows.index}, key=_order)
    body = []
    for variant in variants:
        cells = []
        for name in tasks:
            if variant not in means[name].index:
                cells.append("")
                continue
            row, best = means[name].loc[variant], means[name]["auc"].max()
            text = f"{row['auc']:.4f}" + ("" if row["seeds"] == 1 else f" ± {row['auc_std']:.4f}")
            cells.append(f"**{text}**" if row["auc"] == best else text)
        body.append([shown(variant), *cells])
    return table(["", *(COLUMNS[name] for name in tasks)], body)


def _shown_there(rows: pd.DataFrame) -> pd.DataFrame:
    others = [name for name in rows.index if "negatives none" in name and "gru_type AUGRU" not in name]
    return rows.drop(index=others)


def _order(variant: str) -> tuple[int, bool, int]:
    """DIN, DSIN, then DIEN without and with the auxiliary loss, each from GRU to AUGRU."""
    model, *settings = variant.split(", ")
    cells = ("gru_type GRU", "gru_type AIGRU", "gru_type AGRU", "gru_type AUGRU")
    cell = next((place for place, name in enumerate(cells) if name in settings), 0)
    return ("DIN", "DSIN", "DIEN").index(model), "negatives none" not in settings, cell


def task_table(result: dict[str, Any], baseline: str = "DIN") -> str:
    """Return everything that was measured in a task."""
    measured = summarised(result, baseline).sort_values("variant", key=lambda names: names.map(_order))
    measured["variant"] = measured["variant"].map(shown)
    # No AUC within users where each has one row.
    text = markdown(measured).rstrip().replace("| nan |", "|  |")
    if result.get("epoch seconds"):
        return text
    # The last column has the seconds of an epoch.
    return "\n".join(line.rsplit("|", 2)[0] + "|" for line in text.splitlines())


def ablation_table(found: Measured) -> str:
    """Return what the auxiliary loss adds to DIEN's AUC in each ablation."""
    body = []
    for name in ABLATIONS:
        if name not in found:
            continue
        measured = summarised(found[name], "DIEN, negatives none").set_index("variant")
        without = measured.loc["DIEN, negatives none", "auc"]
        for variant, row in measured.drop("DIEN, negatives none").iterrows():
            gain = f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            body.append(
                [found[name]["title"], str(variant).split(" ")[-1], f"{without:.4f}", f"{row['auc']:.4f}", gain]
            )
    return table(["task", "its negatives", "AUC without", "AUC with", "difference (95 % interval)"], body)


def command(result: dict[str, Any], name: str) -> str:
    """Return what repeats a task's trainings."""
    words = f"{result['command']} --seeds {len({row['seed'] for row in result['rows']})}"
    lines = textwrap.wrap(f"{words} --output compared/{name}", 108, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def conditions(result: dict[str, Any]) -> str:
    """Return how a task was measured."""
    seeds = len({row["seed"] for row in result["rows"]})
    kinds = " and ".join(sorted({row["machine"] for row in result["rows"]}))
    cores = result["machine"]["cores"]
    minutes = sum(row["seconds"] / row["jobs"] for row in result["rows"]) / 60
    jobs = " or ".join(sorted({str(int(row["jobs"])) for row in result["rows"]}))
    over = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    text = (
        f"Test AUC, {over}; one thread a training, {jobs} at a time on {cores} cores of {kinds}, "
        f"{minutes:.0f} minutes; torch {result['versions']['torch']}."
    )
    # DSIN also reads the times of the clicks, which tell more.
    rows = [row for row in result["rows"] if row["variant"] != "DSIN"]
    reachable = [row["best_reachable_auc"] for row in rows if row.get("best_reachable_auc")]
    if reachable:
        text += f" The best reachable AUC is {sum(reachable) / len(reachable):.4f}."
    return text
