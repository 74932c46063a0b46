"""A run is replaced whole or not at all, at whatever moment its training is killed."""

import itertools
import os

import pytest

from dien_fast.errors import CheckpointError
from dien_fast.training.directory import RunDirectory, finish_replacement

OLD = {
    "config.json": "old",
    "best.pt": "old",
    "last.pt": "old",
    "history.csv": "old",
    "metrics.json": "old",
    "auc.png": "old",
    "encoders/item.json": "old",
    "encoders/brand.json": "old",
    "notes.txt": "mine",
}
NEW = {
    "config.json": "new",
    "best.pt": "new",
    "last.pt": "new",
    "history.csv": "new",
    "encoders/item.json": "new",
    "encoders/shop.json": "new",
}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the program's own may catch it."""


def write(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)


def contents(directory):
    """Return the files of a directory, but not those that a training keeps to itself."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {file.as_posix(): (directory / file).read_text() for file in files if file.parts[0][0] != "."}


def kill_after(monkeypatch, count):
    """Let the process change the disk ``count`` times, then kill it."""
    left = itertools.count(count, -1)

    def counted(original):
        def call(*arguments, **options):
            if next(left) <= 0:
                raise Killed
            return original(*arguments, **options)

        return call

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def test_a_kill_at_any_moment_leaves_the_old_run_or_the_new_one_whole(tmp_path, monkeypatch):
    for count in itertools.count():
        directory = tmp_path / str(count)
        write(directory, OLD)
        run = RunDirectory(directory)
        run.begin()
        write(run.place, NEW)
        with monkeypatch.context() as patch:
            kill_after(patch, count)
            try:
                run.take_place()
                killed = False
            except Killed:
                killed = True
        with monkeypatch.context() as patch:
            # Whoever opens the directory next may be killed as well.
            kill_after(patch, count % 5)
            try:
                finish_replacement(directory)
            except Killed:
                killed = True
        finish_replacement(directory)
        assert contents(directory) in (OLD, NEW | {"notes.txt": "mine"}), count
        # The next training finds nothing in its way.
        with RunDirectory(directory) as run:
            run.begin()
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        if not killed:
            break
    assert count > 15
    assert contents(directory) == NEW | {"notes.txt": "mine"}


def test_a_run_that_ends_without_a_checkpoint_leaves_nothing(tmp_path):
    write(tmp_path, OLD)

    def interrupted():
        with RunDirectory(tmp_path) as run:
            run.begin()
            write(run.place, {"best.pt": "new"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == OLD
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_killed_training_began_is_removed_by_the_next(tmp_path):
    run = RunDirectory(tmp_path)
    run.begin()
    write(run.place, {"best.pt": "killed", ".best.x.unfinished.pt": "half"})
    run = RunDirectory(tmp_path)
    run.begin()
    assert list(run.place.iterdir()) == []
    write(run.place, NEW)
    run.take_place()
    run.take_place()
    assert contents(tmp_path) == NEW


def test_directories_are_refused_before_anything_changes(tmp_path):
    write(tmp_path, {"file": "", "run/config.json": "", "run/best.pt": "", "other/best.pt": ""})
    for name, options, message in (
        ("file", {}, "is a file; the run needs a directory"),
        ("file/run", {}, "is a file; the run needs a directory"),
        ("none", {"resume": True}, "holds no run to resume; train without --resume"),
        ("other", {"overwrite": True}, r"holds best\.pt, but no config\.json, so it is not a run"),
        ("run", {}, "already holds a run: go on with --resume"),
        ("run", {"resume": True}, r"holds a run without last\.pt, so it cannot be resumed; start anew with"),
    ):
        with pytest.raises(CheckpointError, match=message):
            RunDirectory(tmp_path / name).check(**options)
    RunDirectory(tmp_path / "run").check(overwrite=True)
    RunDirectory(tmp_path / "new").check()
    assert contents(tmp_path) == {"file": "", "run/config.json": "", "run/best.pt": "", "other/best.pt": ""}
