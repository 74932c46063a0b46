"""A run is replaced whole or not at all, at whatever moment its training is killed."""

import itertools
import json
import os
import signal
import time

import filelock
import pytest
from faults import Forked
from power import Power

from dien_fast.errors import CheckpointError
from dien_fast.files import write_atomically
from dien_fast.training import directory as directory_module
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
    return {file.as_posix(): (directory / file).read_text() for file in files if not is_hidden(file)}


def is_hidden(file):
    return any(part.startswith(".") for part in file.parts)


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
        # The system ends a dead process's lock.
        run._lock.release()
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
        assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == [".lock"]
        if not killed:
            break
    assert count > 15
    assert contents(directory) == NEW | {"notes.txt": "mine"}


def test_nothing_is_removed_before_what_takes_its_place_is_on_the_disk(tmp_path, monkeypatch):
    write(tmp_path, OLD)
    power = Power(monkeypatch)
    with RunDirectory(tmp_path) as run:
        run.begin()
        for name, content in NEW.items():
            with write_atomically(run.place / name) as unfinished:
                unfinished.write_text(content)
        run.take_place()
    assert contents(tmp_path) == NEW | {"notes.txt": "mine"}
    assert power.renamed > 2 * len(NEW)
    assert power.unsafe == {}


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
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]


def test_what_a_killed_training_began_is_removed_by_the_next(tmp_path):
    write(tmp_path, {".new/best.pt": "killed", ".new/.best.x.unfinished.pt": "half"})
    with RunDirectory(tmp_path) as run:
        run.begin()
        assert list(run.place.iterdir()) == []
        write(run.place, NEW)
        run.take_place()
        run.take_place()
    assert contents(tmp_path) == NEW


def test_what_a_kill_left_of_a_new_run_is_removed_by_the_next_that_goes_on(tmp_path):
    write(tmp_path, OLD | {".new/names.json": "[]"})
    with RunDirectory(tmp_path) as run:
        run.resume()
    assert contents(tmp_path) == OLD
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]


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
        with pytest.raises(CheckpointError, match=message), RunDirectory(tmp_path / name) as run:
            run.check(**options)
    with RunDirectory(tmp_path / "run") as run:
        run.check(overwrite=True)
    RunDirectory(tmp_path / "new").check()
    assert contents(tmp_path) == {"file": "", "run/config.json": "", "run/best.pt": "", "other/best.pt": ""}


def begin_and_wait(directory):
    run = RunDirectory(directory)
    run.begin()
    print("begun", flush=True)
    time.sleep(60)


def test_one_training_at_a_time_writes_and_a_kill_frees_the_directory(tmp_path):
    write(tmp_path, OLD)
    first = Forked(begin_and_wait, tmp_path)
    until = time.monotonic() + 60
    while not first.printed() and time.monotonic() < until:
        time.sleep(0.01)
    message = "another training is writing to .*; wait until it has ended or choose another --output"
    second = RunDirectory(tmp_path)
    for attempt in (second.begin, second.resume, lambda: second.check(resume=True)):
        with pytest.raises(CheckpointError, match=message):
            attempt()
    assert (tmp_path / ".new").exists()
    # Readers go on meanwhile.
    finish_replacement(tmp_path)
    first.send(signal.SIGKILL)
    first.wait()
    with second:
        second.begin()
        with pytest.raises(CheckpointError, match=message):
            RunDirectory(tmp_path).begin()
    with RunDirectory(tmp_path) as third:
        third.begin()
    assert contents(tmp_path) == OLD


def test_a_reader_waits_for_a_run_that_takes_its_place(tmp_path, monkeypatch):
    write(tmp_path / ".ready", NEW | {"names.json": json.dumps(list(NEW))})
    with RunDirectory(tmp_path) as run:
        # Held by a training that is about to move the files.
        run._lock.acquire()
        monkeypatch.setattr(directory_module, "_REPLACING_SECONDS", 0.1)
        with pytest.raises(CheckpointError, match="is being replaced by a newer run; try again later"):
            finish_replacement(tmp_path)
    assert contents(tmp_path) == {}
    finish_replacement(tmp_path)
    assert contents(tmp_path) == NEW


def test_a_directory_that_must_not_be_written_to_is_named(tmp_path, monkeypatch):
    def held(*arguments, **options):
        raise filelock.Timeout(".lock")

    # root may write everywhere, so that the answer of the system is made up.
    monkeypatch.setattr(filelock.FileLock, "acquire", held)
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(PermissionError) as caught:
        RunDirectory(tmp_path).begin()
    assert caught.value.filename == str(tmp_path)
