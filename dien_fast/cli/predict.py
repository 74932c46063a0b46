"""``dien-fast predict``: the click probabilities of a table's rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.cli.runs import PARTS, add_run, named_table, report_unknown
from dien_fast.errors import DataError
from dien_fast.lines import print_line

if TYPE_CHECKING:
    import pyarrow as pa

    from dien_fast.training.runs import Run


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
        help="CSV, TSV or Parquet file, a directory of Parquet files, prepared data, or - for standard input; of "
        "prepared data, the part and the number of each row are written, as its words are not there",
    )
    parser.add_argument(
        "--part", choices=PARTS, help="of prepared data, which rows (default: all, part after part)"
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
    from dien_fast.data.prepared.manifest import is_prepared
    from dien_fast.data.tables import STANDARD_STREAM, table_format
    from dien_fast.training.runs import load

    output = arguments.output
    if output != STANDARD_STREAM:
        table_format(output)
        if not Path(output).parent.is_dir():
            raise DataError(f"the directory {Path(output).parent} to write {Path(output).name} to does not exist")
    trained = load(arguments.run)
    show = not arguments.quiet
    if is_prepared(arguments.table):
        parts = PARTS if arguments.part is None else (arguments.part,)
        _write(_scored_parts(trained, arguments.table, parts, arguments.column, show), output)
        return
    place, source = named_table(arguments.table)
    table = read_table(place, trained.schema)
    if arguments.column in table.column_names:
        raise DataError(f"{source} has a column {arguments.column!r} already; name another with --column")
    dataset = trained.dataset(table, allow_unknown=arguments.allow_unknown, progress=show, source=source)
    report_unknown(dataset)
    probabilities = trained.predict(dataset, progress=show)
    table = table.append_column(arguments.column, pa.array(probabilities))
    _write(table, output, trained.schema.separator)


def _scored_parts(trained: Run, directory: str, parts: Sequence[str], column: str, show: bool) -> pa.Table:
    """Return part, row number and probability of the rows of prepared data."""
    import pyarrow as pa

    from dien_fast.data import PreparedDataset

    tables = []
    for part in parts:
        dataset = trained.dataset(directory, part=part)
        assert isinstance(dataset, PreparedDataset)
        scores = trained.predict(dataset, progress=show)
        rows = {"part": pa.array([part] * len(scores), pa.string()), "row": pa.array(dataset.source_rows)}
        tables.append(pa.table(rows | {column: pa.array(scores)}))
    return pa.concat_tables(tables)


def _write(table: pa.Table, output: str, separator: str = "|") -> None:
    from dien_fast.data.tables import STANDARD_STREAM, write_table

    write_table(table, output, separator)
    if output != STANDARD_STREAM:
        print_line(f"{table.num_rows:,} rows written to {output}")
