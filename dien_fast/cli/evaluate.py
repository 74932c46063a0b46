"""``dien-fast evaluate``: the metrics of a run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dien_fast.cli.runs import add_run, named_table, report_unknown, test_rows


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "evaluate", help="metrics of a run on a table", description="Print AUC, LogLoss and GAUC of a trained run."
    )
    add_run(parser)
    parser.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help="CSV, TSV or Parquet file with labels, or - for standard input; default: the run's test rows",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from dien_fast.data import EpochLoader
    from dien_fast.data.inspection import warning_lines
    from dien_fast.training.runs import load
    from dien_fast.training.scoring import evaluate

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
    )
    report_unknown(dataset)
    for line in warning_lines(dataset, trained.encoders, "evaluated"):
        print(line, file=sys.stderr)
    loader = EpochLoader(dataset, 1024)
    scores = evaluate(trained.model, loader, progress=not arguments.quiet)
    print(f"rows: {len(loader.dataset):,}")
    for name, title in (("auc", "AUC"), ("logloss", "LogLoss"), ("gauc", "GAUC")):
        # NaN: labels of one class only, or no user column.
        print(
            f"{title}: {scores[name]:.4f}"
            if scores[name] == scores[name]
            else f"{title}: undefined for these rows"
        )
