"""``dien-fast evaluate``: the metrics of a run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dien_fast.cli.runs import PARTS, add_run, named_table, report_unknown, test_rows
from dien_fast.errors import DienFastError
from dien_fast.lines import print_line


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "evaluate",
        help="metrics of a run on a table",
        description="Print AUC, LogLoss, GAUC and the ranking metrics HR, NDCG and MRR of a trained run. What is "
        "ranked are the rows of a list where the schema names lists, as for --task next, else the rows of a user.",
    )
    add_run(parser)
    parser.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help="CSV, TSV or Parquet file with labels, prepared data, or - for standard input; default: the run's "
        "test rows",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="test",
        help="of prepared data, which rows (default: test)",
    )
    parser.add_argument("--k", type=int, default=10, metavar="K", help="places of HR and NDCG (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; undefined metrics are null")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from dien_fast.data import EpochLoader
    from dien_fast.data.inspection import warning_lines
    from dien_fast.training.runs import load
    from dien_fast.training.scoring import evaluate

    if arguments.k < 1:
        raise DienFastError(f"k must be at least 1, got {arguments.k}")
    trained = load(arguments.run)
    if arguments.table is not None:
        table, source = named_table(arguments.table)
    else:
        table, source = test_rows(trained.config, trained.directory), "the run's test rows"
    dataset = trained.dataset(
        table,
        require_label=True,
        allow_unknown=arguments.allow_unknown,
        progress=not arguments.quiet,
        source=source,
        part=arguments.part,
    )
    report_unknown(dataset)
    for line in warning_lines(dataset, trained.encoders, "evaluated"):
        print_line(line, sys.stderr)
    loader = EpochLoader(dataset, 1024)
    scores = evaluate(trained.model, loader, k=arguments.k, progress=not arguments.quiet)
    del scores["loss"]
    if arguments.json:
        known = {name: value if value == value else None for name, value in scores.items()}
        print_line(json.dumps({"rows": len(loader.dataset)} | known))
        return
    print_line(f"rows: {len(loader.dataset):,}")
    for name, value in scores.items():
        title = {"logloss": "LogLoss"}.get(name, name.upper())
        # NaN: labels of one class only, or no user column.
        print_line(f"{title}: {value:.4f}" if value == value else f"{title}: undefined for these rows")
