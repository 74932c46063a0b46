"""The command ``dien-fast``: train, evaluate and predict with DIEN, and look at what was trained."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dien_fast
from dien_fast.errors import DataError, DienFastError

if TYPE_CHECKING:
    import pyarrow as pa

    from dien_fast.data import ClickDataset
    from dien_fast.data.sources import Source
    from dien_fast.training.runs import RunConfig

_EXAMPLES = """\
examples:
  dien-fast train                                   DIEN on MovieLens-100K, which is fetched
  dien-fast train --dataset synthetic               no data at all: clicks with planted interests
  dien-fast train --dataset clicks.csv --schema clicks.toml --output runs/clicks
  dien-fast evaluate runs/clicks                    metrics on its test rows
  dien-fast predict runs/clicks new.csv --output scored.csv
  dien-fast info runs/clicks                        its settings and metrics

dien-fast COMMAND --help explains each command.
"""

_TRAIN_EXAMPLES = """\
examples:
  dien-fast train --model din --output runs/din     the baseline without interest evolution
  dien-fast train --dataset clicks.parquet --schema clicks.toml --output runs/clicks
  dien-fast train --output runs/clicks --resume     go on after an interruption, same settings
  accelerate launch --multi_gpu -m dien_fast.cli train --dataset ...     one process per GPU
  torchrun --nproc-per-node 2 -m dien_fast.cli train --cpu ...           two processes on CPUs

A schema file says what the columns of your table mean:

  label = "clicked"                                 1 or 0
  user = "user_id"                                  optional: for the split and GAUC
  time = "clicked_at"                               optional: for the split
  numeric = ["price"]
  categorical = ["country", "item", "category"]
  sequences = ["past_items", "past_categories"]     lists, or text such as "7|12|9", oldest first

  [[groups]]                                        candidates with the histories they are compared with
  name = "items"
  pairs = [{ ad = "item", pos_hist = "past_items" }, { ad = "category", pos_hist = "past_categories" }]

The run directory holds best.pt (weights of the best epoch), last.pt (to resume), config.json, encoders/,
history.csv, loss.png, auc.png and metrics.json. Open it in Python with dien_fast.load(DIRECTORY).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is 0, 2 for an error of the input, 130 after Ctrl-C and 143 after SIGTERM, which ends a training in the
    same way.

    Args:
        argv: the words after ``dien-fast``; None takes those of this process.

    Example:
        >>> main(["info"])  # doctest: +SKIP
        0
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except DienFastError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f'{error.name} is not installed: pip install "dien-fast[train]"')
    except ImportError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever reads the output has seen enough; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, _Terminated)
        print(f"\ndien-fast: {'terminated' if terminated else 'interrupted'}{interrupt}", file=sys.stderr)
        return 143 if terminated else 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dien-fast",
        description="Train and use DIEN, the Deep Interest Evolution Network, which predicts clicks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dien-fast {dien_fast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)

    evaluate = commands.add_parser(
        "evaluate", help="metrics of a run on a table", description="Print AUC, LogLoss and GAUC of a trained run."
    )
    _add_run(evaluate)
    evaluate.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help="CSV, TSV or Parquet file with labels, or - for standard input; default: the run's test rows",
    )
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="click probabilities for a table",
        description="Write the rows of a table, in their order, with the probability of a click in a new last "
        "column. The table needs the run's feature columns and no label; unknown words and empty histories are "
        "fine. In a CSV file, lists are written as text.",
    )
    _add_run(predict)
    predict.add_argument(
        "table",
        metavar="TABLE",
        help="CSV, TSV or Parquet file, a directory of Parquet files, or - for standard input",
    )
    predict.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="file to write: .parquet, .csv, .tsv, .csv.gz or .tsv.gz, or - for CSV on standard output",
    )
    predict.add_argument(
        "--column", default="probability", metavar="NAME", help="name of the new column (default: probability)"
    )
    predict.set_defaults(command=_predict)

    info = commands.add_parser(
        "info",
        help="versions and backend, or settings and metrics of a run",
        description="Print versions and the backend in use; with RUN, its settings and metrics; with --attention, "
        "also draw what the model attends to.",
        epilog="example:\n  dien-fast info runs/ml-100k --attention pictures --user 13 --candidates 50,181,258",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("run", nargs="?", metavar="RUN", help="run directory")
    view = info.add_argument_group("attention view (two pictures as figure 5 of the DIEN paper)")
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
        type=_words,
        metavar="A,B,C",
        help="candidates (default: the row's own and frequent ones); quote one that holds a comma: '\"A, B\",C'",
    )
    view.add_argument("--group", metavar="NAME", help="attention group (default: the first)")
    info.set_defaults(command=_info)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train wrote")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="score rows even if nearly all words of a column are unknown to the model, or seem to be written "
        "another way than in training",
    )


def _add_train(commands: Any) -> None:
    # Flags that are not given stay absent, so that a resumed run takes its own settings for them.
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Train DIEN (or DIN) with early stopping on validation AUC and report the test metrics of the "
        "best epoch. Without options: the article's settings on MovieLens-100K.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    data = train.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="DATA",
        help="ml-100k (fetched), synthetic, a MovieLens directory in any layout, or a CSV or Parquet file "
        "(default: ml-100k)",
    )
    data.add_argument("--schema", metavar="FILE", help="TOML file that says what the columns mean (see below)")
    data.add_argument("--valid", metavar="FILE", help="validation rows; default: taken from DATA")
    data.add_argument("--test", metavar="FILE", help="test rows; default: taken from DATA")
    data.add_argument(
        "--split",
        choices=["user", "global", "random"],
        help="how to divide DATA 80/10/10: user = by each user's own order in time, global = in time over all "
        "users, random = by chance (default: the first of these that the columns allow)",
    )
    data.add_argument("--rows", type=int, metavar="N", help="rows of the synthetic data (default: 40000)")
    data.add_argument("--min-count", type=int, metavar="N", help="rarer words count as unknown (default: 5)")
    data.add_argument("--max-length", type=int, metavar="N", help="events kept of a history (default: 50)")
    data.add_argument(
        "--negatives",
        choices=["uniform", "popularity", "columns", "none"],
        help="how the auxiliary loss gets items not clicked (default: uniform); none trains without that loss",
    )
    data.add_argument(
        "--exclude-clicked", action="store_true", help="never draw an item the user has clicked before"
    )
    data.add_argument(
        "--separate-embeddings",
        action="store_true",
        help="one embedding table per feature, as in the article, instead of one for candidate and history",
    )

    model = train.add_argument_group("model")
    model.add_argument("--model", choices=["dien", "din"], help="default: dien")
    model.add_argument(
        "--gru-type", choices=["AUGRU", "AGRU", "AIGRU", "GRU"], help="how the interest evolves (default: AUGRU)"
    )
    model.add_argument("--embedding-size", type=int, metavar="N", help="width of an embedding (default: 16)")
    model.add_argument("--attention-hidden", type=_sizes, metavar="N,N", help="attention MLP (default: 16,8)")
    model.add_argument("--attention-dropout", type=float, metavar="P", help="its dropout (default: 0.1)")
    model.add_argument("--mlp-hidden", type=_sizes, metavar="N,N", help="last MLP (default: 32,16)")
    model.add_argument("--mlp-dropout", type=float, metavar="P", help="its dropout (default: 0.25)")

    fit = train.add_argument_group("training")
    fit.add_argument("--epochs", type=int, metavar="N", help="most epochs (default: 20)")
    fit.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N epochs without a better validation AUC (default: 3)",
    )
    fit.add_argument("--batch-size", type=int, metavar="N", help="rows in a step (default: 128)")
    fit.add_argument("--lr", type=float, metavar="X", help="Adam's step size (default: 0.002)")
    fit.add_argument(
        "--weight-decay", type=float, metavar="X", help="Adam's L2 penalty (default: 0.001 on MovieLens, else 0)"
    )
    fit.add_argument("--aux-weight", type=float, metavar="X", help="weight of the auxiliary loss (default: 1)")
    fit.add_argument("--seed", type=int, metavar="N", help="default: 0")
    fit.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], help="default: no")
    fit.add_argument("--gradient-accumulation", type=int, metavar="N", help="batches to a step (default: 1)")
    fit.add_argument("--workers", type=_workers, default=0, metavar="N", help="processes for batches (default: 0)")
    fit.add_argument("--cpu", action="store_true", default=False, help="stay on the CPU though there is a GPU")

    output = train.add_argument_group("output")
    output.add_argument("--output", metavar="DIR", help="run directory (default: runs/ and the dataset's name)")
    again = output.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on with the run in DIR, with its settings where none are given; only --epochs and --patience may "
        "differ from them",
    )
    again.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace the run in DIR; it stays until the new one has its first checkpoint",
    )
    output.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
    train.set_defaults(command=_train)


def _train(arguments: argparse.Namespace) -> None:
    from dien_fast.training.pipeline import train_run

    directory = _output(arguments)
    source, config = _settings(arguments, directory)
    before = _file_number(directory / "last.pt")
    try:
        with _sigterm_as_interrupt():
            train_run(
                source,
                config,
                directory,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
                cpu=arguments.cpu,
                num_workers=arguments.workers,
                progress=not arguments.quiet,
            )
    except KeyboardInterrupt as interrupt:
        # Without a checkpoint of its own, a training leaves the run that was there.
        now = _file_number(directory / "last.pt")
        hint = f"; go on with: dien-fast train --output {directory} --resume"
        if now is None or (now == before and not arguments.resume):
            hint = "; it had no checkpoint yet, so nothing has changed"
        raise type(interrupt)(hint) from interrupt


class _Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, with which schedulers and containers end a process."""


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the code inside as Ctrl-C does, so that it cleans up and says how to go on."""

    def terminate(*_: object) -> None:
        raise _Terminated

    # Python runs handlers in the main thread alone, and sets them only there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _file_number(path: Path) -> int | None:
    """Return what tells a file from one that replaces it, or None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _settings(arguments: argparse.Namespace, directory: Path) -> tuple[Source, RunConfig]:
    """Return what the flags say on top of the defaults or, when resuming, of the run's own settings."""
    from dien_fast.data.sources import OVERRIDES, Source
    from dien_fast.training.runs import RunConfig, load_config

    config, source = RunConfig(), Source()
    if arguments.resume and (directory / "config.json").exists():
        config = load_config(directory)
        source = Source.from_dict(config.data, directory)
    given = vars(arguments)
    if given.pop("separate_embeddings", False):
        given["share_vocabulary"] = False
    overrides = source.overrides | {name: given[name] for name in OVERRIDES if name in given}
    places = {item.name: given[item.name] for item in fields(Source) if item.name in given}
    for name in ("dataset", "schema", "valid", "test"):
        if name in places and not (name == "dataset" and places[name] in ("ml-100k", "synthetic")):
            # The run can then be evaluated from another directory.
            places[name] = str(Path(places[name]).resolve())
    source = replace(source, overrides=overrides, **places)
    if not config.fingerprint and not source.is_movielens:
        # The article's penalty suits MovieLens, where few items are rated often; on other clicks it was seen to
        # hold the embeddings at zero.
        config = replace(config, weight_decay=0.0)
    # A run's --schema is a file's path; its config holds the file's content.
    own = {item.name for item in fields(RunConfig)} - {"schema", "data"}
    return source, replace(config, **{name: value for name, value in given.items() if name in own})


def _output(arguments: argparse.Namespace) -> Path:
    if "output" in arguments:
        return Path(arguments.output)
    return Path("runs") / Path(getattr(arguments, "dataset", "ml-100k")).name.split(".")[0]


def _evaluate(arguments: argparse.Namespace) -> None:
    from dien_fast.data import EpochLoader
    from dien_fast.data.inspection import warning_lines
    from dien_fast.training.runs import load
    from dien_fast.training.scoring import evaluate

    run = load(arguments.run)
    if arguments.table is not None:
        table, source = _table(arguments.table)
    else:
        table, source = _test_rows(run.config, run.directory), "the run's test rows"
    dataset = run.dataset(table, require_label=True, allow_unknown=arguments.allow_unknown, source=source)
    _report_unknown(dataset)
    for line in warning_lines(dataset, run.encoders, "evaluated"):
        print(line, file=sys.stderr)
    loader = EpochLoader(dataset, 1024)
    scores = evaluate(run.model, loader, progress=not arguments.quiet)
    print(f"rows: {len(loader.dataset):,}")
    for name, title in (("auc", "AUC"), ("logloss", "LogLoss"), ("gauc", "GAUC")):
        # NaN: labels of one class only, or no user column.
        print(
            f"{title}: {scores[name]:.4f}"
            if scores[name] == scores[name]
            else f"{title}: undefined for these rows"
        )


def _test_rows(config: RunConfig, directory: Path) -> pa.Table:
    from dien_fast.data import fit_encoders
    from dien_fast.data.sources import Source

    tables = Source.from_dict(config.data, directory).load(config.seed)
    if fit_encoders(tables.train, config.click_schema).fingerprint() != config.fingerprint:
        raise DataError(
            f"{config.data['dataset']} has changed since {directory} was trained on it, so its test rows are not "
            "known; name a table"
        )
    return tables.test


def _predict(arguments: argparse.Namespace) -> None:
    import pyarrow as pa

    from dien_fast.data import read_table
    from dien_fast.data.tables import STANDARD_STREAM, table_format, write_table
    from dien_fast.training.runs import load

    output = arguments.output
    if output != STANDARD_STREAM:
        table_format(output)
        if not Path(output).parent.is_dir():
            raise DataError(f"the directory {Path(output).parent} to write {Path(output).name} to does not exist")
    run = load(arguments.run)
    place, source = _table(arguments.table)
    table = read_table(place, run.schema)
    if arguments.column in table.column_names:
        raise DataError(f"{source} has a column {arguments.column!r} already; name another with --column")
    dataset = run.dataset(table, allow_unknown=arguments.allow_unknown, source=source)
    _report_unknown(dataset)
    probabilities = run.predict(dataset, progress=not arguments.quiet)
    write_table(table.append_column(arguments.column, pa.array(probabilities)), output, run.schema.separator)
    if output != STANDARD_STREAM:
        print(f"{len(probabilities):,} rows written to {output}")


def _report_unknown(dataset: ClickDataset) -> None:
    from dien_fast.data.inspection import unknown_lines

    for line in unknown_lines(dataset.unknown):
        print(line, file=sys.stderr)


def _table(name: str) -> tuple[Any, str]:
    """Return where a table named on the command line is read from, and what messages call it."""
    return (sys.stdin.buffer, "standard input") if name == "-" else (name, name)


def _info(arguments: argparse.Namespace) -> None:
    if arguments.run is None:
        if arguments.attention is not None:
            raise DienFastError("--attention needs a run directory: dien-fast info RUN --attention DIR")
        print(f"dien-fast {dien_fast.__version__}")
        print(f"torch {torch.__version__}, Python {platform.python_version()}")
        devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        print(f"threads: {torch.get_num_threads()}; GPUs: {', '.join(devices) or 'none'}")
        print(f"backend: {dien_fast.backend()}")
        return
    from dien_fast.training.config import read_json
    from dien_fast.training.runs import load, load_config

    directory = Path(arguments.run)
    config = load_config(directory)
    for item in fields(config):
        value = getattr(config, item.name)
        print(f"{item.name}: {json.dumps(value) if isinstance(value, dict | list) else value}")
    metrics = directory / "metrics.json"
    print("metrics: " + (json.dumps(read_json(metrics)) if metrics.exists() else "none, the run is not finished"))
    if arguments.attention is not None:
        from dien_fast.training.attention_view import attention_view

        paths = attention_view(
            load(directory),
            arguments.table if arguments.table is not None else _test_rows(config, directory),
            arguments.attention,
            row=arguments.row,
            user=arguments.user,
            candidates=arguments.candidates,
            group=arguments.group,
            log=print,
        )
        print("written: " + ", ".join(str(path) for path in paths))


def _words(text: str) -> list[str]:
    # As a line of a CSV file: a word that holds a comma stands in quotes.
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), []) if word.strip()]
    if not words:
        raise ValueError
    return words


def _workers(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def _sizes(text: str) -> list[int]:
    sizes = [int(word) for word in text.split(",")]
    if min(sizes) < 1:
        raise ValueError
    return sizes


# argparse names the type in its message.
_sizes.__name__ = "list of sizes"
_words.__name__ = "list of candidates"
_workers.__name__ = "number of workers"


def _fail(sentence: str) -> int:
    print(f"dien-fast: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
