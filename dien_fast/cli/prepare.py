"""``dien-fast prepare``: from tables of any size to data that training reads from the disk."""

from __future__ import annotations

import argparse
from typing import Any

from dien_fast.lines import print_line

_EXAMPLES = """\
examples:
  dien-fast prepare --dataset 'clicks/**/*.parquet' --schema clicks.toml --output prepared/
  dien-fast train --dataset prepared/ --output runs/clicks
  dien-fast evaluate runs/clicks
  dien-fast predict runs/clicks prepared/ --output scored.parquet

The directory holds shards (*.arrow), encoders/, what negatives are drawn from, and manifest.json, which comes
last. The same command goes on with a preparation that was interrupted.
"""


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "prepare",
        help="encode tables that do not fit into memory",
        description="Read CSV or Parquet files of any size in a stream, divide their rows, learn the encoders, "
        "and write all rows as ids. The directory takes the place of a table in train, evaluate and predict.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="DATA",
        help="a file, a directory with key=value folders, or a pattern in quotes, local or the URI of a file "
        "system that pyarrow or fsspec knows (s3://, gs://, hdfs://, ...)",
    )
    parser.add_argument(
        "--schema", required=True, metavar="FILE", help="TOML file that says what the columns mean (see train)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--valid", metavar="DATA", help="validation rows; default: taken from DATA")
    parser.add_argument("--test", metavar="DATA", help="test rows; default: taken from DATA")
    parser.add_argument(
        "--split",
        choices=["user", "users", "global", "random"],
        help="how to divide DATA 80/10/10, as for train (default: user, global or random, the first that the "
        "columns allow)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the splits users and random (default: 0)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace prepared data, or what is left of an interruption"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from dien_fast.data import Schema, prepare

    prepared = prepare(
        arguments.dataset,
        Schema.from_toml(arguments.schema),
        arguments.output,
        valid=arguments.valid,
        test=arguments.test,
        split=arguments.split,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
    )
    print_line(prepared.split)
    counts = ", ".join(f"{count:,} {part}" for part, count in prepared.rows.items())
    print_line(f"{sum(prepared.rows.values()):,} rows written to {arguments.output}: {counts}")
