"""``dien-fast tune``: a search for the settings with the best validation AUC."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.cli import train
from dien_fast.cli.signals import sigterm_as_interrupt
from dien_fast.errors import DienFastError
from dien_fast.files import lock_directory, make_directory
from dien_fast.lines import print_line
from dien_fast.training.comparison import options
from dien_fast.training.tuning import (
    SPACE,
    Range,
    best_options,
    finished,
    importances,
    next_trial,
    open_study,
    study_errors,
)

if TYPE_CHECKING:
    import optuna

_DESCRIPTION = """\
Search settings with Optuna: each trial is a training, and what counts is its validation AUC; the test rows play no
part. All options of `dien-fast train` but --output are taken too and hold for every trial. The trials are kept in
DIR/study.db; the same command goes on after an interruption.
"""

_EXAMPLES = f"""\
examples:
  dien-fast tune --model din --trials 20 --output tuned/din
  dien-fast tune --search lr=1e-3:1e-2 gru_type=AUGRU,AGRU --epochs 5 --output tuned/dien

Without --search these are searched:
  {" ".join(SPACE)}
"""

_OWN = ("--output", "--resume", "--overwrite", "--quiet")


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "tune",
        help="search for good settings",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--search",
        nargs="+",
        default=list(SPACE),
        metavar="NAME=RANGE",
        help="what to search: NAME=LOW:HIGH (on a logarithmic scale if HIGH is 20 times LOW or more) or NAME=A,B; "
        "sizes are written with a plus, as in mlp_hidden=32+16,64+32",
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials in total (default: 20)")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the study")
    parser.set_defaults(command=run, takes_more=True)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.trials < 1:
        raise DienFastError(f"trials must be at least 1, got {arguments.trials}")
    for word in arguments.more:
        if word.partition("=")[0] in _OWN:
            raise DienFastError(f"{word} is decided by tune itself")
    search = [Range.parse(text) for text in arguments.search]
    directory = Path(arguments.output)
    given = train.parse(arguments.more, "dien-fast tune")
    _, config = train.settings(given, directory / "trial")
    _check_search(search, arguments.more, directory)
    make_directory(directory)
    path = directory / "study.db"
    with study_errors(path), lock_directory(directory, "tunes there"):
        study = open_study(path, search)
        done = min(finished(study), arguments.trials)
        print_line(f"{arguments.trials} trials, {done} of them finished before")
        try:
            with sigterm_as_interrupt():
                while finished(study) < arguments.trials:
                    _trial(next_trial(study, config.seed), search, arguments.more, directory)
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)("; the same command goes on with what is missing") from interrupt
        _report(study, directory)


def _check_search(search: list[Range], more: list[str], directory: Path) -> None:
    """Refuse settings that do not exist, before the first trial."""
    for setting in search:
        ends = setting.choices or [
            f"{bound:.0f}" if setting.whole else repr(bound) for bound in (setting.low, setting.high)
        ]
        for value in ends:
            train.settings(
                train.parse([*more, *options([(setting.name, value)])], "dien-fast tune"), directory / "trial"
            )


def _trial(trial: optuna.Trial, search: list[Range], more: list[str], directory: Path) -> None:
    """Train with settings that the study asks for, and tell it the best validation AUC."""
    import optuna

    from dien_fast.training.pipeline import train_run

    study = trial.study
    words = [*more, *options([(setting.name, setting.suggest(trial)) for setting in search])]
    trial.set_user_attr("options", words)
    given = train.parse(words, "dien-fast tune")
    source, config = train.settings(given, directory / "trial")

    def report(row: Mapping[str, float]) -> None:
        trial.report(row["valid_auc"], int(row["epoch"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    shown = " ".join(f"{name}={value}" for name, value in trial.params.items())
    try:
        metrics = train_run(
            source,
            config,
            directory / "trial",
            overwrite=True,
            cpu=given.cpu,
            num_workers=given.workers,
            progress=sys.stderr.isatty(),
            log=lambda line: None,
            on_epoch=report,
        )
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        print_line(f"trial {trial.number}: pruned  {shown}")
        return
    except DienFastError as error:
        # A step size with which training diverges is a result of the search, not the end of it.
        if not str(error).startswith("training diverged"):
            raise
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        print_line(f"trial {trial.number}: {error}  {shown}")
        return
    study.tell(trial, metrics["valid_auc"])
    print_line(f"trial {trial.number}: validation AUC {metrics['valid_auc']:.4f}  {shown}")


def _report(study: optuna.Study, directory: Path) -> None:
    best = best_options(study)
    for name, share in importances(study).items():
        print_line(f"importance of {name}: {share:.2f}")
    print_line(f"best validation AUC: {study.best_value:.4f}; train with these settings:")
    print_line(shlex.join(["dien-fast", "train", *best, "--output", f"{directory}/best"]))
