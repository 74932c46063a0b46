"""``dien-fast compare``: models and settings over several seeds, and a table of what came out."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dien_fast.cli import train
from dien_fast.cli.signals import raise_lost_signal, sigterm_as_interrupt
from dien_fast.errors import CheckpointError, DienFastError
from dien_fast.files import lock_directory, make_directory, write_atomically
from dien_fast.lines import print_line
from dien_fast.training.comparison import Variant, markdown, options, result_of, summary, variants

_DESCRIPTION = """\
Train each model, with each combination of the settings named by --vary, with each seed, and compare the test AUC.
All options of `dien-fast train` but --model, --seed and --output are taken too and hold for every training. A
training that is finished is not repeated, so an interrupted comparison goes on with the same command.
"""

_EXAMPLES = """\
examples:
  dien-fast compare --models din,dien --seeds 3 --output compared
  dien-fast compare --models din,dien --vary gru_type=AUGRU,AGRU negatives=uniform,none --seeds 5 \\
      --task next --first-event 5 --output compared
  dien-fast compare --models din,dien --for din lr=0.004 --for dien lr=0.002 aux_weight=0.5 --output compared
"""

# What the comparison decides for each training.
_OWN = ("--model", "--seed", "--output", "--resume", "--overwrite", "--quiet")


@dataclass(frozen=True)
class _Training:
    variant: Variant
    seed: int
    directory: Path
    words: tuple[str, ...]


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "compare",
        help="models and settings over several seeds",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # --seed would otherwise be taken for --seeds.
        allow_abbrev=False,
    )
    parser.add_argument("--models", default="din,dien", metavar="A,B", help="models (default: din,dien)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1 (default: 5)")
    parser.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="NAME=A,B",
        help="options of train and their values; one of a single model is varied there alone; sizes are written "
        "with a plus, as in mlp_hidden=32+16,64+32; flags are true or false",
    )
    parser.add_argument(
        "--for",
        nargs="+",
        action="append",
        default=[],
        dest="own",
        metavar=("MODEL", "NAME=VALUE"),
        help="settings of one model in all its trainings, such as those that tune found; may be repeated",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="variant that the others are compared with, by its name in the table (default: the first)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time, which share the cores (default: 1)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the runs and the table")
    parser.set_defaults(command=run, takes_more=True)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    trainings = _trainings(arguments)
    names = list(dict.fromkeys(training.variant.name for training in trainings))
    baseline = arguments.baseline or names[0]
    if baseline not in names:
        raise DienFastError(f"baseline must be one of {'; '.join(names)}, got {baseline!r}")
    directory = Path(arguments.output)
    make_directory(directory)
    with lock_directory(directory, "compares there"):
        _check_same_options(directory, arguments.more, _own_settings(arguments))
        _compare(trainings, names, baseline, directory, arguments.jobs)


def _compare(trainings: list[_Training], names: list[str], baseline: str, directory: Path, jobs: int) -> None:
    """Train what is missing, and report."""
    finished = _Results(directory / "results.csv")
    missing = [training for training in trainings if not finished.has(training)]
    print_line(f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them finished before")
    failed = []
    try:
        with sigterm_as_interrupt():
            for training, seconds, error in _outcomes(missing, jobs):
                if error is None:
                    finished.add(training, seconds)
                    continue
                failed.append(f"{training.variant.name}, seed {training.seed}: {error}")
                print_line(f"failed: {failed[-1]}")
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("; the same command goes on with what is missing") from interrupt
    if not finished.empty():
        _report(finished, names, baseline, directory, _threads(jobs))
    if failed:
        raise DienFastError(f"{len(failed)} of {len(trainings)} trainings failed; the first was {failed[0]}")


def _trainings(arguments: argparse.Namespace) -> list[_Training]:
    """Return what there is to train, all variants with one seed before the next seed."""
    if arguments.seeds < 1:
        raise DienFastError(f"seeds must be at least 1, got {arguments.seeds}")
    if arguments.jobs < 1:
        raise DienFastError(f"jobs must be at least 1, got {arguments.jobs}")
    for word in arguments.more:
        if word.partition("=")[0] in _OWN:
            raise DienFastError(f"{word} is decided by compare itself; see --models, --seeds and --output")
    own = _own_settings(arguments)
    vary = {name: values.split(",") for name, values in (_assignment(word, "vary") for word in arguments.vary)}
    for model, settings in own.items():
        for name in settings:
            if name in vary or f"--{name}" in _OWN:
                raise DienFastError(f"{name} is decided by compare itself, so it cannot be fixed for {model}")
    found = []
    for seed in range(arguments.seeds):
        for variant in variants(arguments.models.split(","), vary):
            directory = Path(arguments.output) / variant.slug / f"seed-{seed}"
            fixed = options(own.get(variant.model, {}).items())
            words = [*arguments.more, *fixed, *variant.options(), "--seed", str(seed), "--output", str(directory)]
            # Parsed now, so that a wrong option is named before the first training.
            train.settings(train.parse(words, "dien-fast compare"), directory)
            found.append(_Training(variant, seed, directory, tuple(words)))
    return found


def _assignment(word: str, option: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise DienFastError(f"{option} must be NAME={'A,B' if option == 'vary' else 'VALUE'}, got {word!r}")
    return name.replace("-", "_"), value


def _own_settings(arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Return what --for says: the settings of each model."""
    models = arguments.models.split(",")
    found: dict[str, dict[str, str]] = {}
    for model, *settings in arguments.own:
        if model not in models:
            raise DienFastError(f"for must name one of the models {', '.join(models)}, got {model!r}")
        found.setdefault(model, {}).update(_assignment(word, "for") for word in settings)
    return found


def _check_same_options(directory: Path, more: list[str], own: dict[str, dict[str, str]]) -> None:
    """Refuse to add trainings with other options to a comparison."""
    from dien_fast.training.config import read_json, write_json

    path = directory / "compare.json"
    if not path.exists():
        write_json(path, {"options": more, "for": own})
        return
    content = read_json(path)
    if not _is_comparison(content):
        raise CheckpointError(f"{path} does not hold the options of a comparison; choose another --output")
    before, now = (
        " ".join([*shared, *(word for model, given in fixed.items() for word in _spelled(model, given))])
        for shared, fixed in ((content["options"], content.get("for", {})), (more, own))
    )
    if before != now:
        raise CheckpointError(
            f"{directory} holds a comparison with the options {before or '(none)'}, "
            f"not {now or '(none)'}; choose another --output"
        )


def _is_comparison(content: Any) -> bool:
    """Whether this is what a comparison notes of its options."""
    if not isinstance(content, dict):
        return False
    words, own = content.get("options"), content.get("for", {})
    return (
        isinstance(words, list)
        and all(isinstance(word, str) for word in words)
        and isinstance(own, dict)
        and all(isinstance(settings, dict) for settings in own.values())
    )


def _spelled(model: str, settings: dict[str, str]) -> list[str]:
    return ["--for", model, *(f"{name}={value}" for name, value in settings.items())]


def _outcomes(trainings: list[_Training], jobs: int) -> Iterator[tuple[_Training, float, str | None]]:
    """Train, and yield each training when it has ended, with its seconds and what went wrong."""
    if jobs == 1:
        for number, training in enumerate(trainings, 1):
            print_line(f"{number} of {len(trainings)}: {training.variant.name}, seed {training.seed}")
            yield training, *_train(training, progress=True)
        return
    # Forked processes would share the locks of torch's threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=_begin_worker, initargs=(_threads(jobs),)
    ) as pool:
        try:
            running = {pool.submit(_train, training): training for training in trainings}
            for number, done in enumerate(as_completed(running), 1):
                training = running[done]
                name = f"{training.variant.name}, seed {training.seed}"
                print_line(f"{number} of {len(trainings)} ended: {name}")
                yield training, *done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _threads(jobs: int) -> int:
    """Return the threads of each training."""
    import torch

    return torch.get_num_threads() if jobs == 1 else max(1, len(os.sched_getaffinity(0)) // jobs)


def _begin_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # Ctrl-C reaches every process of a terminal; the first one ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that gives it trainings is gone: it would train on, and keep its lock."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train(training: _Training, progress: bool = False) -> tuple[float, str | None]:
    """Train one run, or go on with it; return its seconds and what went wrong."""
    from dien_fast.training.pipeline import train_run

    started = (training.directory / "last.pt").exists()
    arguments = train.parse(
        [*training.words, *(["--resume"] if started else ["--overwrite"])], "dien-fast compare"
    )
    source, config = train.settings(arguments, training.directory)
    begin = time.perf_counter()
    training.directory.mkdir(parents=True, exist_ok=True)
    with (training.directory / "train.log").open("a", encoding="utf-8") as log:
        try:
            train_run(
                source,
                config,
                training.directory,
                resume=started,
                overwrite=not started,
                cpu=arguments.cpu,
                num_workers=arguments.workers,
                progress=progress and sys.stderr.isatty(),
                log=lambda line: print_line(line, log),
            )
        except (DienFastError, MemoryError) as error:
            raise_lost_signal(error)
            return time.perf_counter() - begin, " ".join(str(error).split()) or type(error).__name__
    return time.perf_counter() - begin, None


class _Results:
    """The finished trainings, in a file that is written anew with each of them."""

    def __init__(self, path: Path) -> None:
        import pandas as pd

        self._path = path
        self.table = pd.DataFrame({"variant": [], "seed": []})
        if not path.exists():
            return
        try:
            self.table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a table of trainings: {' '.join(str(error).split())}") from None
        numbers = ("seed", "test_auc", "test_gauc", "test_logloss", "epochs", "epoch_seconds", "seconds")
        for name in ("variant", *numbers):
            if name not in self.table.columns:
                raise CheckpointError(f"{path} is not a table of trainings: it has no column {name}")
        for name in (*numbers, "best_reachable_auc"):
            if name in self.table.columns and self.table[name].dtype.kind not in "iuf":
                raise CheckpointError(f"{path} is not a table of trainings: {name} is not a number in every row")

    def empty(self) -> bool:
        return self.table.empty

    def has(self, training: _Training) -> bool:
        rows = (self.table["variant"] == training.variant.name) & (self.table["seed"] == training.seed)
        return bool(rows.any())

    def add(self, training: _Training, seconds: float) -> None:
        import pandas as pd

        row = {"variant": training.variant.name, "seed": training.seed}
        row |= result_of(training.directory) | {"seconds": seconds}
        self.table = pd.DataFrame([*self.table.to_dict("records"), row])
        with write_atomically(self._path) as unfinished:
            self.table.to_csv(unfinished, index=False)


def _report(finished: _Results, names: list[str], baseline: str, directory: Path, threads: int) -> None:
    """Write and print the table."""
    from dien_fast.training.plots import plot_comparison

    results = finished.table[finished.table["variant"].isin(names)]
    if baseline not in set(results["variant"]):
        raise DienFastError(
            f"no training of the baseline, {baseline}, has succeeded, so there is nothing to compare"
        )
    table = summary(results, baseline)
    order = {name: place for place, name in enumerate(names)}
    table = table.sort_values("variant", key=lambda column: column.map(order), ignore_index=True)
    text = markdown(table)
    with write_atomically(directory / "table.csv") as unfinished:
        table.to_csv(unfinished, index=False)
    minutes = finished.table["seconds"].sum() / 60
    text += f"\nDifferences are from {baseline}, with the same seed. {minutes:.0f} minutes of training, "
    text += f"threads: {threads}.\n"
    if "best_reachable_auc" in results:
        text += f"The best reachable AUC is {results['best_reachable_auc'].mean():.4f}.\n"
    with write_atomically(directory / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    plot_comparison(table, directory / "table.png")
    for line in text.splitlines():
        print_line(line)
    print_line(f"written to {directory}")
