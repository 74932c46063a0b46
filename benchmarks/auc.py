"""What DIN, DSIN and DIEN reach on four tasks: test AUC over several seeds, by ``dien-fast compare``.

    python benchmarks/auc.py TASK [--seeds 5] [--jobs 2] [--models din,dien] [--directory runs/auc]
    python benchmarks/auc.py TASK --time

Every training runs on one thread, ``--jobs`` of them at a time. Interrupted with Ctrl-C or SIGTERM, it saves the
trainings that have ended, and the same command goes on; also without the runs, from ``results/auc-TASK.json``.
What another task has trained with the same settings is taken from there.
Tables are of the seeds that every variant has. Digits are those of the kind of machine that the file names for
each training: another kind rounds otherwise. ``--time`` trains two epochs of each variant, one after the other,
for the seconds of an epoch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import machine
import pandas as pd
import torch

from dien_fast.cli import main as dien_fast
from dien_fast.training.comparison import variants
from dien_fast.training.config import read_json

NEXT = ["--dataset", "ml-100k", "--task", "next", "--first-event", "5", "--max-length", "20"]
KINDS = ["gru_type=AUGRU,AGRU,AIGRU,GRU", "negatives=uniform,none"]


class Task(NamedTuple):
    """What is trained on.

    Attributes:
        title: what pages call it.
        options: the data, as options of ``dien-fast train``.
        models: which models.
        vary: which of their settings, as options of ``dien-fast compare``.
        own: settings that a model has for itself.
        shares: the task whose trainings of DIEN with AUGRU are this one's too.
    """

    title: str
    options: list[str]
    models: str = "din,dsin,dien"
    vary: list[str] = KINDS
    own: dict[str, list[str]] = {}
    shares: str = ""


# What is kept of a training.
COLUMNS = [
    *("variant", "seed", "test_auc", "test_gauc", "test_logloss", "epochs"),
    *("epoch_seconds", "seconds", "best_reachable_auc", "machine", "jobs"),
]
# The best of 12 trials of `dien-fast tune` for each model on "next-popularity", by validation AUC (DIN 0.8510,
# DSIN 0.8631, DIEN 0.8760), with --search lr=1e-3:2e-2 weight_decay=1e-6:1e-3 mlp_dropout=0.0:0.5
# attention_hidden=16+8,36.
TUNED = {
    "din": ["lr=0.0031", "weight_decay=8.3e-5", "mlp_dropout=0.05"],
    "dsin": ["lr=0.0032", "weight_decay=3.9e-5", "mlp_dropout=0.03", "attention_hidden=36"],
    "dien": ["lr=0.0064", "weight_decay=3.9e-5", "mlp_dropout=0.07"],
}
TUNED_DIEN = {"dien": TUNED["dien"]}
# The best of 12 trials of the same search on "synthetic" (DIN 0.7985, DSIN 0.9166, DIEN 0.9213).
TUNED_SYNTHETIC = {
    "din": ["lr=0.005", "weight_decay=5.1e-5", "mlp_dropout=0.09", "attention_hidden=36"],
    "dsin": ["lr=0.005", "weight_decay=5.1e-5", "mlp_dropout=0.09", "attention_hidden=36"],
    "dien": ["lr=0.0054", "weight_decay=1.7e-6", "mlp_dropout=0.49"],
}
POPULARITY = [*NEXT, "--sampling", "popularity"]
UNIFORM = [*NEXT, "--sampling", "uniform"]
TASKS = {
    "next-popularity": Task("next film, against one drawn by popularity", POPULARITY, own=TUNED),
    "next-uniform": Task("next film, against one drawn uniformly", UNIFORM, own=TUNED),
    "synthetic": Task(
        "synthetic clicks with a drifting interest", ["--dataset", "synthetic"], own=TUNED_SYNTHETIC
    ),
    "rating": Task("is the rating above 3?", ["--dataset", "ml-100k"]),
    "auxiliary-popularity": Task(
        "next film, against one drawn by popularity",
        POPULARITY,
        "dien",
        ["negatives=none,uniform,popularity"],
        TUNED_DIEN,
        "next-popularity",
    ),
    "auxiliary-uniform": Task(
        "next film, against one drawn uniformly",
        UNIFORM,
        "dien",
        ["negatives=none,uniform,popularity"],
        TUNED_DIEN,
        "next-uniform",
    ),
    "auxiliary-tables": Task(
        "next film, a table for each feature",
        [*POPULARITY, "--separate-embeddings"],
        "dien",
        ["negatives=none,uniform"],
        TUNED_DIEN,
    ),
    "auxiliary-order": Task(
        "next film, histories in random order",
        [*POPULARITY, "--shuffle-histories"],
        "dien",
        ["negatives=none,uniform"],
        TUNED_DIEN,
    ),
}
AUGRU = "DIEN, gru_type AUGRU, "


def variants_of(task: Task) -> int:
    """Return how many variants a task has."""
    vary = dict(words.split("=") for words in task.vary)
    return len(variants(task.models.split(","), {name: values.split(",") for name, values in vary.items()}))


def words_of(task: Task, directory: Path) -> list[str]:
    """Return the command, without seeds and jobs."""
    own = [
        word
        for model, settings in task.own.items()
        if model in task.models.split(",")
        for word in ("--for", model, *settings)
    ]
    return [
        "compare",
        "--models",
        task.models,
        "--vary",
        *task.vary,
        *own,
        *task.options,
        "--output",
        str(directory),
    ]


def compare(words: list[str], directory: Path) -> tuple[int, pd.DataFrame]:
    """Run the command; return its status and a row for each training that has ended."""
    status, path = dien_fast(words), directory / "results.csv"
    if not path.exists():
        raise SystemExit(status)
    return status, pd.read_csv(path)


def shared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trainings of DIEN with AUGRU, named as where its gates do not vary."""
    augru = [row for row in rows if row["variant"].startswith(AUGRU)]
    return [row | {"variant": row["variant"].replace(AUGRU, "DIEN, ")} for row in augru]


def restore(rows: list[dict[str, Any]], directory: Path) -> None:
    """Put trainings that results files have where the command looks for them."""
    if (directory / "results.csv").exists() or not rows:
        return
    directory.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).drop_duplicates(["variant", "seed"]).to_csv(directory / "results.csv", index=False)


def measured(
    task: Task, directory: Path, seeds: int, jobs: int, saved: list[dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Return the command's status, and what a results file holds; saved trainings keep their machine and jobs."""
    words = words_of(task, directory)
    status, results = compare([*words, "--seeds", str(seeds), "--jobs", str(jobs)], directory)
    kind = machine.short_name(machine.cpu(), machine.cpu_model())
    before = {(row["variant"], row["seed"]): row for row in saved}
    trained = [before.get(key, {}) for key in zip(results["variant"], results["seed"], strict=True)]
    for name, value in (("machine", kind), ("jobs", jobs)):
        results[name] = [row.get(name, value) for row in trained]
    rows = results.sort_values(["seed", "variant"])[[name for name in COLUMNS if name in results]]
    return status, {
        **machine.description(1),
        "title": task.title,
        "command": " ".join(["dien-fast", *words[:-2]]),
        "rows": json.loads(rows.to_json(orient="records")),
    }


def epoch_seconds(task: Task, directory: Path) -> dict[str, float]:
    """Return the seconds of each variant's second epoch."""
    words = [*words_of(task, directory), "--epochs", "2", "--seeds", "1"]
    status, results = compare(words, directory)
    if status:
        raise SystemExit(status)
    return {row["variant"]: round(row["epoch_seconds"], 2) for row in results.to_dict("records")}


def saved_of(name: str) -> tuple[Path, dict[str, Any]]:
    """Return where a task's results are, and what is there."""
    path = machine.RESULTS / f"auc-{name}.json"
    return path, read_json(path) if path.exists() else {}


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", help="some of the task's models, such as din,dien (all)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2)")
    parser.add_argument("--time", action="store_true", help="measure the seconds of an epoch alone")
    parser.add_argument("--directory", type=Path, default=Path("runs/auc"), help="for the runs (runs/auc)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, directory = TASKS[given.task], given.directory / given.task
    task = task._replace(models=given.models or task.models)
    path, saved = saved_of(given.task)
    if given.time:
        machine.save(
            {**saved, "epoch seconds": epoch_seconds(task, directory.with_name(directory.name + "-time"))}, path
        )
        return
    rows = saved.get("rows", [])
    if task.shares:
        rows = rows + shared(saved_of(task.shares)[1].get("rows", []))
    restore(rows, directory)
    status, result = measured(task, directory, given.seeds, given.jobs, rows)
    machine.save({**result, **{name: saved[name] for name in ("epoch seconds",) if name in saved}}, path)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
