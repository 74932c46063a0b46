"""The command ``dien-fast``: train, evaluate and predict with DIEN, and look at what was trained."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

import torch

import dien_fast
from dien_fast.cli import compare, evaluate, export, info, predict, prepare, serve, train, tune
from dien_fast.cli.options import Parser
from dien_fast.cli.signals import Terminated, no_signal_lost
from dien_fast.errors import DienFastError, one_sentence
from dien_fast.lines import print_line

_EXAMPLES = """\
examples:
  dien-fast train                                   DIEN on MovieLens-100K, which is fetched
  dien-fast train --dataset synthetic               no data at all: clicks with planted interests
  dien-fast train --dataset clicks.csv --schema clicks.toml --output runs/clicks
  dien-fast prepare --dataset 'clicks/**/*.parquet' --schema clicks.toml --output prepared/     for any size
  dien-fast evaluate runs/clicks                    metrics on its test rows
  dien-fast predict runs/clicks new.csv --output scored.csv
  dien-fast info runs/clicks                        its settings and metrics
  dien-fast compare --models din,dien --output compared     over five seeds
  dien-fast tune --model din --output tuned         a search for good settings

dien-fast COMMAND --help explains each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is 0, 2 for an error of the input, 130 after Ctrl-C and 143 after SIGTERM; where ``train`` takes steps,
    SIGTERM lets it write a checkpoint, and the status is 0.

    Args:
        argv: the words after ``dien-fast``; None takes those of this process.

    Example:
        >>> main(["info"])  # doctest: +SKIP
        0
    """
    try:
        with no_signal_lost():
            arguments = _parse(argv)
            arguments.command(arguments)
            sys.stdout.flush()
    except DienFastError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f'{error.name} is not installed: pip install "dien-fast[train]"')
    except ImportError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever reads the output has seen enough.
        _is_writable(sys.stdout)
    except MemoryError as error:
        return _fail(f"there is not enough memory{_reason(error)}")
    except SystemError as error:
        # What the interpreter and extensions raise that did not expect to be refused memory.
        return _fail(f"there may not be enough memory{_reason(error)}")
    except RuntimeError as error:
        # torch has no class of its own for memory of the CPU.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        return _fail(f"there is not enough memory{_reason(error)}")
    except OSError as error:
        where = (
            f"{error.filename}: " if error.filename else "" if _is_writable(sys.stdout) else "standard output: "
        )
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        print_line("", sys.stderr)
        print_line(f"dien-fast: {'terminated' if terminated else 'interrupted'}{interrupt}", sys.stderr)
        return 143 if terminated else 130
    finally:
        _leave_the_others()
        _is_writable(sys.stderr)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments, more = parser.parse_known_args(argv)
    if more and not hasattr(arguments, "takes_more"):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    arguments.more = more
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="dien-fast",
        description="Train and use DIEN, the Deep Interest Evolution Network, which predicts clicks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dien-fast {dien_fast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (train, prepare, evaluate, predict, compare, tune, export, serve, info):
        module.add_parser(commands)
    return parser


def _leave_the_others() -> None:
    """Leave the processes that train as one: threads of their group would abort this one at its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _is_writable(stream: TextIO) -> bool:
    """Write what a stream still holds; if that fails, let it go nowhere and return False."""
    try:
        stream.flush()
    except OSError:
        # Python's own flush at exit would fail too, with lines and a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f": {lines[0]}" if lines else ""


def _fail(sentence: str) -> int:
    # The status alone must do where even this cannot be written.
    with suppress(OSError):
        print_line(f"dien-fast: error: {one_sentence(sentence)}", sys.stderr)
    return 2
