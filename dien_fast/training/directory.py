"""The directory of a run while a training writes to it.

A new run is written to ``.new`` inside the directory. Once it has its first checkpoint it takes the place of the
run that was there before. A process that is killed at any moment leaves the old run or the new one, whole:

1. The new run stands in ``.new`` with a list of its files. A kill leaves the old run; ``.new`` is removed later.
2. ``.new`` is renamed to ``.ready``. From this moment on the new run counts.
3. The old run's other files are removed and those of ``.ready`` moved into their places. If a kill interrupts
   this, whoever opens the directory next carries it on.

One training at a time writes: it holds the operating system's lock on the file ``.lock``, which ends with the
process. Reading needs no lock.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import TracebackType

import filelock

from dien_fast.errors import CheckpointError
from dien_fast.files import (
    LOCK,
    make_directory,
    path_inside,
    remove_unfinished,
    sync_directory,
    take_lock,
    write_atomically,
)

RUN_FILES = ("config.json", "best.pt", "last.pt", "history.csv", "metrics.json", "loss.png", "auc.png")

_NEW = ".new"
_READY = ".ready"
_NAMES = "names.json"
# Moving a run's files takes milliseconds.
_REPLACING_SECONDS = 10.0


class RunDirectory:
    """Where a training puts its files.

    Args:
        path: the directory; it need not exist.

    Attributes:
        path: the directory.
        place: where to write now: ``path``, or ``.new`` inside it until a new run has its first checkpoint.

    Example:
        >>> with RunDirectory("runs/clicks") as run:  # doctest: +SKIP
        ...     run.begin()
        ...     (run.place / "best.pt").write_bytes(weights)
        ...     run.take_place()
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.place = self.path
        # Not of the thread alone: another thread may close the directory.
        self._lock = filelock.FileLock(self.path / LOCK, thread_local=False)

    def lock(self) -> None:
        """Keep every other training away until :meth:`close`; the directory is made if needed.

        Raises:
            CheckpointError: if another training has the directory.
        """
        if self._lock.is_locked:
            return
        make_directory(self.path)
        if not take_lock(self._lock, self.path):
            raise CheckpointError(
                f"another training is writing to {self.path}; wait until it has ended or choose another --output"
            )
        _finish_replacement(self.path)

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a directory to which a training with these options must not write; change nothing in it.

        A run that is there is locked.

        Raises:
            CheckpointError: if it is a file or not a run's, holds a run that is to be neither resumed nor
                overwritten, holds none that could be resumed, or another training has it.
        """
        for part in (self.path, *self.path.parents):
            if part.exists() and not part.is_dir():
                raise CheckpointError(f"{part} is a file; the run needs a directory")
        # A new run has no config.json before its first checkpoint, but a lock.
        if any((self.path / name).exists() for name in ("config.json", _READY, LOCK)):
            self.lock()
        if not (self.path / "config.json").exists():
            if resume:
                raise CheckpointError(f"{self.path} holds no run to resume; train without --resume to start one")
            for name in (*RUN_FILES, "encoders"):
                if (self.path / name).exists():
                    raise CheckpointError(
                        f"{self.path} holds {name}, but no config.json, so it is not a run; "
                        "choose another --output"
                    )
        elif resume and not (self.path / "last.pt").exists():
            raise CheckpointError(
                f"{self.path} holds a run without last.pt, so it cannot be resumed; start anew with --overwrite, "
                "or choose another --output"
            )
        elif not resume and not overwrite:
            raise CheckpointError(
                f"{self.path} already holds a run: go on with --resume, replace it with --overwrite, "
                "or choose another --output"
            )

    def begin(self) -> None:
        """Start a new run: it is written to ``.new`` until :meth:`take_place`."""
        self.lock()
        remove_unfinished(self.path)
        shutil.rmtree(self.path / _NEW, ignore_errors=True)
        self.place = self.path / _NEW
        self.place.mkdir()

    def resume(self) -> None:
        """Go on with the run that is there."""
        self.lock()
        remove_unfinished(self.path)
        # A kill may have left what stood beside the files that were moved out of it.
        shutil.rmtree(self.path / _NEW, ignore_errors=True)
        self.place = self.path

    def take_place(self) -> None:
        """Let the new run take the place of the old one; do nothing if it has done so."""
        if self.place == self.path:
            return
        files = sorted(file for file in self.place.rglob("*") if file.is_file())
        with write_atomically(self.place / _NAMES) as names:
            names.write_text(json.dumps([file.relative_to(self.place).as_posix() for file in files]), "utf-8")
        self.place.replace(self.path / _READY)
        sync_directory(self.path)
        self.place = self.path
        _finish_replacement(self.path)

    def close(self) -> None:
        """Remove what is left of a new run that has no checkpoint, and let others write to the directory."""
        if self.place != self.path:
            shutil.rmtree(self.place, ignore_errors=True)
            self.place = self.path
        self._lock.release(force=True)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tables_of_epoch(epoch: int) -> str:
    """Return what the directory with the tables after an epoch is called, where several processes divide them."""
    return f"tables-{epoch}"


def finish_replacement(directory: str | Path) -> None:
    """Let a new run take its place where a kill kept it from doing so; readers call this first.

    Raises:
        CheckpointError: if another process does this, and has not finished within seconds.
    """
    directory = Path(directory)
    until = time.monotonic() + _REPLACING_SECONDS
    while (directory / _READY).is_dir():
        lock = filelock.FileLock(directory / LOCK)
        if take_lock(lock, directory):
            try:
                _finish_replacement(directory)
            finally:
                lock.release()
            continue
        # A training holds the lock to its end, but .ready is gone in a moment.
        if time.monotonic() > until:
            raise CheckpointError(f"{directory} is being replaced by a newer run; try again later")
        time.sleep(0.05)


def _finish_replacement(directory: Path) -> None:
    """Move a new run's files from ``.ready`` into their places; the caller holds the lock.

    Repeating any part of this changes nothing, so that it may be interrupted and begun again.
    """
    ready = directory / _READY
    if not ready.is_dir():
        return
    names = _names(ready)
    encoders = (path.relative_to(directory).as_posix() for path in (directory / "encoders").glob("*.json"))
    tables = (path.relative_to(directory).as_posix() for path in directory.glob("tables-*/*"))
    stale = [
        path_inside(directory, name, CheckpointError) for name in {*RUN_FILES, *encoders, *tables} - set(names)
    ]
    moves = [[path_inside(place, name, CheckpointError) for place in (ready, directory)] for name in names]
    for path in stale:
        path.unlink(missing_ok=True)
    for new, place in moves:
        if new.exists():
            place.parent.mkdir(exist_ok=True)
            new.replace(place)
    # Without power, a file may be found under its old name as long as the new one is not on the disk.
    for changed in {directory, *(place.parent for _, place in moves if place.parent.is_dir())}:
        sync_directory(changed)
    # Renamed first: a half-removed .ready would be taken for a run.
    shutil.rmtree(directory / _NEW, ignore_errors=True)
    ready.replace(directory / _NEW)
    sync_directory(directory)
    shutil.rmtree(directory / _NEW)


def _names(ready: Path) -> list[str]:
    """Return the list of the files of a new run.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        names = json.loads((ready / _NAMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{ready / _NAMES}, the list of the files of a new run, is missing or damaged")
    return names
