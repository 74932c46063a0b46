"""``dien-fast info``: versions, or what is in a run."""

from __future__ import annotations

import argparse
import csv
import json
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import dien_fast
from dien_fast.cli.runs import test_rows
from dien_fast.errors import DienFastError
from dien_fast.lines import print_line


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "info",
        help="versions and backend, or settings and metrics of a run",
        description="Print versions and the backend in use; with RUN, its settings and metrics; with --attention, "
        "also draw what the model attends to.",
        epilog="example:\n  dien-fast info runs/ml-100k --attention pictures --user 13 --candidates 50,181,258",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="run directory")
    view = parser.add_argument_group("attention view (two pictures as figure 5 of the DIEN paper)")
    view.add_argument(
        "--attention",
        metavar="DIR",
        help="write attention.png (which steps of a history each candidate attends to) and interest.png (how the "
        "interest evolves for each candidate) to DIR",
    )
    view.add_argument("--table", metavar="TABLE", help="table to take the row from; default: the run's test rows")
    which = view.add_mutually_exclusive_group()
    which.add_argument(
        "--row", type=int, metavar="N", help="number of the row, from 0 (default: the first that has a history)"
    )
    which.add_argument("--user", metavar="USER", help="take the last row of this user that has a history")
    view.add_argument(
        "--candidates",
        type=words,
        metavar="A,B,C",
        help="candidates (default: the row's own and frequent ones); quote one that holds a comma: '\"A, B\",C'",
    )
    view.add_argument("--group", metavar="NAME", help="attention group (default: the first)")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.run is None:
        if arguments.attention is not None:
            raise DienFastError("--attention needs a run directory: dien-fast info RUN --attention DIR")
        print_line(f"dien-fast {dien_fast.__version__}")
        print_line(f"torch {torch.__version__}, Python {platform.python_version()}")
        devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        print_line(f"threads: {torch.get_num_threads()}; GPUs: {', '.join(devices) or 'none'}")
        print_line(f"backend: {dien_fast.backend()}")
        return
    from dien_fast.training.config import read_json
    from dien_fast.training.runs import load, load_config

    directory = Path(arguments.run)
    config = load_config(directory)
    for item in fields(config):
        value = getattr(config, item.name)
        print_line(f"{item.name}: {json.dumps(value) if isinstance(value, dict | list) else value}")
    metrics = directory / "metrics.json"
    print_line(
        "metrics: " + (json.dumps(read_json(metrics)) if metrics.exists() else "none, the run is not finished")
    )
    if arguments.attention is not None:
        from dien_fast.training.attention_view import attention_view

        paths = attention_view(
            load(directory),
            arguments.table if arguments.table is not None else test_rows(config, directory),
            arguments.attention,
            row=arguments.row,
            user=arguments.user,
            candidates=arguments.candidates,
            group=arguments.group,
            log=print_line,
        )
        print_line("written: " + ", ".join(str(path) for path in paths))


def words(text: str) -> list[str]:
    """Read words between commas."""
    # As a line of a CSV file: a word that holds a comma stands in quotes.
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), []) if word.strip()]
    if not words:
        raise ValueError
    return words


# argparse names the type in its message.
words.__name__ = "list of candidates"
