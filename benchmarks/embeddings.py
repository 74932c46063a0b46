"""Times a training step of DIEN for embedding tables of different sizes, with each table optimizer.

    python benchmarks/embeddings.py [--threads 2] [--rounds 15] [--output results.json]

The model has two tables, of items and of categories, 16 numbers a row; a batch has 128 histories of 50 to 100
events, whose ids and negatives are drawn uniformly, so that nearly every lookup meets another row. The sizes of an
optimizer run in turn in one process. The results go to
``benchmarks/results/embeddings-MACHINE-THREADS-threads.json``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from model import BATCH, step_of
from speed import interleaved

import dien_fast
from dien_fast import AttentionGroup, Ragged
from dien_fast.training.optimizers import SPARSE_RULES, make_optimizer, tables_of

ROWS = (1_000, 100_000, 1_000_000, 10_000_000)
SHORTEST, LONGEST = 50, 100
WIDTH = 16
BATCHES = 8
OPTIMIZERS = ("adam", *SPARSE_RULES)
Batch = dict[str, Any]


def model_of(rows: int) -> dien_fast.DIEN:
    pairs = [
        {"ad": "item", "pos_hist": "items", "neg_hist": "otherItems"},
        {"ad": "category", "pos_hist": "categories", "neg_hist": "otherCategories"},
    ]
    shared = {"items": "item", "otherItems": "item", "categories": "category", "otherCategories": "category"}
    torch.manual_seed(0)
    return dien_fast.DIEN(
        num_features=[],
        cat_features=["item", "category"],
        seq_features=list(shared),
        cat_nums=dict.fromkeys(["item", "category", *shared], rows),
        embedding_size=WIDTH,
        attention_groups=[AttentionGroup("clicks", pairs, hidden_layers=[16, 8])],
        mlp_hidden_layers=[32, 16],
        use_negsampling=True,
        shared_embeddings=shared,
    )


def batches_of(rows: int) -> list[Batch]:
    torch.manual_seed(0)
    batches = []
    for _ in range(BATCHES):
        offsets = F.pad(torch.randint(SHORTEST, LONGEST + 1, (BATCH,)).cumsum(0), (1, 0))
        batch: Batch = {name: torch.randint(1, rows, (BATCH,)) for name in ("item", "category")}
        for name in ("items", "otherItems", "categories", "otherCategories"):
            batch[name] = Ragged(torch.randint(1, rows, (int(offsets[-1]),)), offsets, LONGEST)
        batches.append(batch | {"label": torch.randint(2, (BATCH,)).float()})
    return batches


def run_of(optimizer: str, rows: int) -> Callable[[int], None]:
    """Return a function that takes a step of a new model."""
    model, batches = model_of(rows), batches_of(rows)
    if optimizer != "adam":
        for table in tables_of(model):
            table.sparse = True
    step = step_of(model, [make_optimizer(model, optimizer, lr=1e-3, weight_decay=1e-4)], "label")

    def run(step: Callable[[Batch], None], batches: list[Batch], number: int) -> None:
        step(batches[number % len(batches)])

    return partial(run, step, batches)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a step by optimizer and number of rows."""
    found: dict[str, dict[str, float]] = {}
    for optimizer in OPTIMIZERS:
        found[optimizer] = interleaved({str(rows): run_of(optimizer, rows) for rows in ROWS}, rounds)
        print(optimizer, found[optimizer], flush=True)
        gc.collect()
    return found


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each size (15)")
    parser.add_argument("--output", type=Path, help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = machine.description(arguments.threads) | {
        "rounds": arguments.rounds,
        "B": BATCH,
        "T": [SHORTEST, LONGEST],
        "D": WIDTH,
        "milliseconds": measure(arguments.rounds),
    }
    machine.save(
        result, arguments.output or machine.RESULTS / f"embeddings-{machine.here(arguments.threads)}.json"
    )


if __name__ == "__main__":
    main()
