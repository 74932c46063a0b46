"""What the commands share that use a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.errors import DataError
from dien_fast.lines import print_line

if TYPE_CHECKING:
    import pyarrow as pa

    from dien_fast.data import ClickDataset
    from dien_fast.training.config import RunConfig


PARTS = ("train", "valid", "test")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that scores a table with a run."""
    parser.add_argument("run", metavar="RUN", help="run directory that train wrote")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="score rows even if nearly all words of a column are unknown to the model, or seem to be written "
        "another way than in training",
    )


def test_rows(config: RunConfig, directory: Path) -> pa.Table | Path:
    """Return the test rows of a run, read again from where its rows came from, or the prepared data with them.

    Raises:
        DataError: if they are no longer what they were.
    """
    from dien_fast.data.sources import PreparedParts, Source

    tables = Source.from_dict(config.data, directory).open(config.seed)
    if isinstance(tables, PreparedParts):
        return tables.data.directory
    if tables.learn(config.click_schema).fingerprint() != config.fingerprint:
        raise DataError(
            f"{config.data['dataset']} has changed since {directory} was trained on it, so its test rows are not "
            "known; name a table"
        )
    return tables.test


def report_unknown(dataset: ClickDataset) -> None:
    """Say on stderr which words of a table the run does not know."""
    from dien_fast.data.inspection import unknown_lines

    for line in unknown_lines(dataset.unknown):
        print_line(line, sys.stderr)


def named_table(name: str) -> tuple[Any, str]:
    """Return where a table named on the command line is read from, and what messages call it."""
    return (sys.stdin.buffer, "standard input") if name == "-" else (name, name)
