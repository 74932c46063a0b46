"""``dien-fast predict``: the click probabilities of a table's rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dien_fast.cli.runs import add_run, named_table, report_unknown
from dien_fast.errors import DataError


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "predict",
        help="click probabilities for a table",
        description="Write the rows of a table, in their order, with the probability of a click in a new last "
        "column. The table needs the run's feature columns and no label; unknown words and empty histories are "
        "fine. In a CSV file, lists are written as text.",
    )
    add_run(parser)
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="CSV, TSV or Parquet file, a directory of Parquet files, or - for standard input",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="file to write: .parquet, .csv, .tsv, .csv.gz or .tsv.gz, or - for CSV on standard output",
    )
    parser.add_argument(
        "--column", default="probability", metavar="NAME", help="name of the new column (default: probability)"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import pyarrow as pa

    from dien_fast.data import read_table
    from dien_fast.data.tables import STANDARD_STREAM, table_format, write_table
    from dien_fast.training.runs import load

    output = arguments.output
    if output != STANDARD_STREAM:
        table_format(output)
        if not Path(output).parent.is_dir():
            raise DataError(f"the directory {Path(output).parent} to write {Path(output).name} to does not exist")
    trained = load(arguments.run)
    place, source = named_table(arguments.table)
    table = read_table(place, trained.schema)
    if arguments.column in table.column_names:
        raise DataError(f"{source} has a column {arguments.column!r} already; name another with --column")
    show = not arguments.quiet
    dataset = trained.dataset(table, allow_unknown=arguments.allow_unknown, progress=show, source=source)
    report_unknown(dataset)
    probabilities = trained.predict(dataset, progress=show)
    write_table(table.append_column(arguments.column, pa.array(probabilities)), output, trained.schema.separator)
    if output != STANDARD_STREAM:
        print(f"{len(probabilities):,} rows written to {output}")
