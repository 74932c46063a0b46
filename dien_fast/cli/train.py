"""``dien-fast train``: from a table of clicks to a trained run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.cli.options import Parser, add_settings, count, model_options, with_default
from dien_fast.cli.signals import sigterm_as_interrupt
from dien_fast.data.schema import NEGATIVES, Schema
from dien_fast.errors import DienFastError
from dien_fast.lines import print_line
from dien_fast.models import MODELS
from dien_fast.settings import default_of, rules
from dien_fast.training.config import RunConfig
from dien_fast.training.settings import TrainSettings
from dien_fast.training.trackers import TRACKERS

if TYPE_CHECKING:
    from dien_fast.data.sources import Source

_EXAMPLES = """\
examples:
  dien-fast train --model din --output runs/din     the baseline without interest evolution
  dien-fast train --task next --first-event 5       which film comes next, told from a sampled one
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

That of a log of events, for --task next:

  [events]
  user = "customer"
  item = "article"
  time = "bought_at"                                leave out where the rows stand in order of time
  item_columns = ["brand"]                          what else is known of the item
  user_columns = ["country", "age"]
  numeric = ["age"]                                 those of user_columns that are numbers
  session_gap = 1800                                seconds; a longer pause begins a new session (dsin)

The run directory holds best.pt (weights of the best epoch), last.pt (to resume), config.json, encoders/,
history.csv, loss.png, auc.png and metrics.json. Open it in Python with dien_fast.load(DIRECTORY).
"""


# The settings under the heading "training"; all others describe the model.
_TRAINING = [*rules(TrainSettings), "batch_size"]


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    # Flags that are not given stay absent, so that a resumed run takes its own settings for them.
    parser = commands.add_parser(
        "train",
        help="train a model",
        description="Train a model with early stopping on validation AUC and report the test metrics of the best "
        "epoch. Without options: DIEN on MovieLens-100K.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_options(parser)
    parser.set_defaults(command=run)


def parse(words: Sequence[str], program: str) -> argparse.Namespace:
    """Read options of this command for another one.

    Args:
        words: the options.
        program: what messages call the other command.
    """
    parser = Parser(program, argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    _add_options(parser)
    return parser.parse_args(words)


def _add_options(parser: argparse.ArgumentParser) -> None:
    _add_data(parser.add_argument_group("data"))
    _add_task(parser.add_argument_group("task"))
    model = [name for name in rules(RunConfig) if name not in _TRAINING]
    add_settings(parser.add_argument_group("model"), RunConfig, model)
    _add_model_options(parser)
    training = parser.add_argument_group("training")
    add_settings(training, RunConfig, _TRAINING)
    training.add_argument(
        "--workers", type=count, default=0, metavar="N", help="processes that prepare batches (default: 0)"
    )
    training.add_argument(
        "--cpu", action="store_true", default=False, help="stay on the CPU though there is a GPU"
    )
    _add_output(parser.add_argument_group("output"))


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that belong to some models alone, each under the first model that has it."""
    owners = model_options()
    for model, kind in MODELS.items():
        own = [name for name in rules(kind.options) if owners[name][0] == model]
        if own:
            add_settings(parser.add_argument_group(f"model {model}"), kind.options, own)


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset",
        metavar="DATA",
        help="ml-100k (fetched), synthetic, a MovieLens directory in any layout, a directory that the official "
        "code or dien-fast prepare has prepared, or a CSV or Parquet file (default: ml-100k); for --task next "
        "also Amazon reviews (reviews_X.json.gz, with meta_X.json.gz beside it), RecBole's X.inter, or X.txt with "
        "a user and an item a line",
    )
    group.add_argument("--schema", metavar="FILE", help="TOML file that says what the columns mean (see below)")
    group.add_argument("--valid", metavar="FILE", help="validation rows; default: taken from DATA")
    group.add_argument("--test", metavar="FILE", help="test rows; default: taken from DATA")
    group.add_argument(
        "--split",
        choices=["user", "users", "global", "random"],
        help="how to divide DATA 80/10/10: user = by each user's own order in time, users = all rows of a user "
        "in one part, global = in time over all users, random = by chance (default: users for --task next, else "
        "user, global or random, the first that the columns allow)",
    )
    group.add_argument("--rows", type=int, metavar="N", help="rows of the synthetic data (default: 40000)")
    group.add_argument(
        "--shuffle-histories",
        action="store_true",
        help="put each history in random order, to see what a model learns from the order",
    )
    for name, meaning in (
        ("min_count", "words seen less often in training count as unknown; on MovieLens 5, as in the article"),
        ("max_length", "events kept of a history"),
    ):
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=int, metavar="N", help=with_default(meaning, default_of(Schema, name)))
    group.add_argument(
        "--negatives",
        choices=NEGATIVES,
        help="how the auxiliary loss gets items not clicked; none trains without that loss "
        f"(default: {default_of(Schema, 'negatives')})",
    )
    group.add_argument(
        "--exclude-clicked", action="store_true", help="never draw an item the user has clicked before"
    )
    group.add_argument(
        "--separate-embeddings",
        action="store_true",
        help="one embedding table per feature, as in the article, instead of one for candidate and history",
    )


def _add_task(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--task",
        choices=["label", "next"],
        help="label: predict the label of each row; next: tell the item of a user's next event from sampled ones "
        "(default: label)",
    )
    group.add_argument(
        "--first-event",
        type=int,
        metavar="N",
        help="of next: predict each user's events from the N-th on (default: the last alone)",
    )
    group.add_argument(
        "--sampled", type=int, metavar="N", help="of next: items sampled for each event (default: 1)"
    )
    group.add_argument(
        "--sampling",
        choices=["uniform", "popularity"],
        help="of next: sample every item equally often, or as often as it has events (default: uniform)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", metavar="DIR", help="run directory (default: runs/ and the dataset's name)")
    again = group.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on with the run in DIR, with its settings where none are given; only --epochs, --patience and "
        "--checkpoint-every may differ from them",
    )
    again.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace the run in DIR; it stays until the new one has its first checkpoint",
    )
    group.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
    group.add_argument(
        "--track",
        nargs="+",
        choices=list(TRACKERS),
        default=[],
        help="also give settings and metrics to these trackers; TensorBoard's files go to tensorboard/ beside DIR",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from dien_fast.training.pipeline import train_run
    from dien_fast.training.position import StopRequest, TrainingStopped

    directory = output_directory(arguments)
    source, config = settings(arguments, directory)
    before, stop = _file_number(directory / "last.pt"), StopRequest()
    go_on = f"go on with: dien-fast train --output {shlex.quote(str(directory))} --resume"
    try:
        with sigterm_as_interrupt(stop):
            train_run(
                source,
                config,
                directory,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
                cpu=arguments.cpu,
                num_workers=arguments.workers,
                progress=not arguments.quiet,
                track=arguments.track,
                stop=stop,
            )
    except TrainingStopped as stopped:
        print_line(f"{stopped}; {go_on}")
    except KeyboardInterrupt as interrupt:
        # Without a checkpoint of its own, a training leaves the run that was there.
        now = _file_number(directory / "last.pt")
        hint = f"; {go_on}"
        if now is None or (now == before and not arguments.resume):
            hint = "; it had no checkpoint yet, so nothing has changed"
        raise type(interrupt)(hint) from interrupt


def _file_number(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from one that replaces it, whatever the clock says, or None where there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def settings(arguments: argparse.Namespace, directory: Path) -> tuple[Source, RunConfig]:
    """Return what the flags say on top of the defaults or, when resuming, of the run's own settings."""
    from dien_fast.data.sources import OVERRIDES, Source
    from dien_fast.training.directory import finish_replacement
    from dien_fast.training.runs import load_config

    config, source = RunConfig(), Source()
    if arguments.resume:
        finish_replacement(directory)
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
    # A run's --schema is a file's path; its config holds the file's content.
    own = {item.name for item in fields(RunConfig)} - {"schema", "data", "options"}
    given_own = {name: value for name, value in given.items() if name in own}
    return source, replace(config, **given_own, options=_options(given, config))


def _options(given: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the options of the model: those given, on top of the run's own if it is of that model.

    Raises:
        DienFastError: if an option is given that the model does not have.
    """
    model = given.get("model", config.model)
    options = dict(config.options) if model == config.model else {}
    for name, models in model_options().items():
        if name in given and model not in models:
            option = "--" + name.replace("_", "-")
            raise DienFastError(f"{option} is an option of {', '.join(models)}, not of {model}")
        if name in given:
            options[name] = given[name]
    return options


def output_directory(arguments: argparse.Namespace) -> Path:
    """Return the run directory: the one that is named, or one called after the dataset."""
    if "output" in arguments:
        return Path(arguments.output)
    name = Path(getattr(arguments, "dataset", "ml-100k")).name.split(".")[0]
    return Path("runs") / (f"{name}-next" if getattr(arguments, "task", "label") == "next" else name)
