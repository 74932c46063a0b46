"""Files that are written whole or not at all, directories that one process writes to, paths that stay inside."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from dien_fast.errors import DienFastError

if TYPE_CHECKING:
    import filelock

# Unfinished files carry this ending; a killed process may leave one behind.
UNFINISHED = ".unfinished"
# The file of a directory whose lock a process holds while it writes there.
LOCK = ".lock"


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, which replaces ``path`` once the block has ended well.

    The content is on the disk (fsync) before the name changes, so that a reader, or a machine that lost
    power, finds the old file or the new one and never a part. Behind the block the new name is on the disk too.
    If the block raises, ``path`` is untouched.

    Args:
        path: the file to write; its directory is made if needed.

    Raises:
        OSError: with ``path`` as its ``filename``, if the file cannot be written: no space is left, for example.

    Example:
        >>> with write_atomically("metrics.json") as unfinished:  # doctest: +SKIP
        ...     unfinished.write_text("{}")
    """
    path = Path(path)
    make_directory(path.parent)
    # The old ending stays last, because writers such as matplotlib choose the format by it.
    before, behind = _unfinished_name(path)
    handle, name = _held(lambda: tempfile.mkstemp(dir=path.parent, prefix=before, suffix=behind))
    unfinished = Path(name)
    try:
        # mkstemp's files are private; these are to have the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)
        yield unfinished
        with unfinished.open("rb+") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        # A failed write, such as to a full disk, names no file; a failed opening names the unfinished one.
        if error.errno is not None and error.filename in (None, name):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def make_directory(path: str | Path) -> None:
    """Make a directory and those it lies in, if they are not there; their names are then on the disk.

    Raises:
        OSError: one of them cannot be made.
    """
    path = Path(path)
    missing = [part for part in (path, *path.parents) if not part.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for part in missing:
        sync_directory(part.parent)


def sync_directory(directory: str | Path) -> None:
    """Put the names in a directory on the disk (fsync): new files, and what was renamed or removed.

    Raises:
        OSError: the disk cannot be written.
    """
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        # It may be written and not read.
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # What file systems say that know no such thing.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _unfinished_name(path: Path) -> tuple[str, str]:
    """Return how the names of the unfinished files of ``path`` begin and end."""
    return f".{path.stem}.", f"{UNFINISHED}{path.suffix}"


def _held(make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Make an open file and lock it, so that :func:`remove_abandoned` of other processes lets it be."""
    while True:
        handle, name = make()
        # Some file systems have no locks; there the file is as good without.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, name
        # It was removed between making and locking.
        os.close(handle)


def remove_abandoned(path: str | Path) -> None:
    """Remove what killed processes were writing in place of ``path``, but nothing that one is writing now.

    Args:
        path: a file that :func:`write_atomically` was to write; its directory need not exist.

    Example:
        >>> remove_abandoned("model.onnx")  # doctest: +SKIP
    """
    path = Path(path)
    before, behind = _unfinished_name(path)
    for unfinished in path.parent.glob(f"{escape(before)}*{escape(behind)}"):
        # Whoever writes it holds its lock.
        with suppress(OSError), unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink()


def check_archive(path: str | Path) -> None:
    """Compare a ZIP archive, such as ``torch.save`` writes, with the checksums in it; torch does not.

    Raises:
        ValueError: a checksum is wrong, or the entries claim more bytes than the file has, for which torch would
            take the memory first.
        zipfile.BadZipFile: the file is no archive.
        OSError: it cannot be read.

    Example:
        >>> check_archive("runs/ml-100k/best.pt")  # doctest: +SKIP
    """
    with ZipFile(path) as archive:
        claimed, size = sum(entry.file_size for entry in archive.infolist()), Path(path).stat().st_size
        if claimed > size:
            raise ValueError(f"its entries claim {claimed:,} bytes, and the file has {size:,}")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def parse_json(text: str | bytes) -> Any:
    """Return what a text of JSON says.

    Raises:
        ValueError: the text is no JSON, or nested so deeply that it cannot be read.

    Example:
        >>> parse_json('{"rows": 3}')
        {'rows': 3}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_unfinished(path: str | Path) -> bool:
    """Return whether ``path`` is named as a file that :func:`write_atomically` had not finished."""
    name = Path(path).name
    return name.startswith(".") and UNFINISHED in name


def remove_unfinished(directory: str | Path) -> None:
    """Remove what a killed process was writing in ``directory``."""
    for path in Path(directory).glob(f".*{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def path_inside(directory: str | Path, name: str, kind: type[DienFastError] = DienFastError) -> Path:
    """Return the path of a file that another file names, if it lies in ``directory``.

    Manifests and checkpoints name files beside them. Whoever made these might name any file of the machine.

    Args:
        directory: where the file must be.
        name: its path in there.
        kind: of the error.

    Raises:
        DienFastError: of that kind, if the name is absolute or empty, has ``..`` in it, or a symbolic link leads
            out of the directory.

    Example:
        >>> path_inside("prepared", "../../etc/passwd")
        Traceback (most recent call last):
        dien_fast.errors.DienFastError: prepared names the file '../../etc/passwd', which is not inside it
    """
    directory, pure = Path(directory), PurePath(name)
    plain = pure.parts and not pure.is_absolute() and ".." not in pure.parts and "\0" not in name
    if not plain or not (directory / pure).resolve().is_relative_to(directory.resolve()):
        raise kind(f"{directory} names the file {name!r}, which is not inside it")
    return directory / pure


def take_lock(lock: filelock.BaseFileLock, directory: Path) -> bool:
    """Take a lock on a file in ``directory`` at once; return False where another process has it.

    It is the system's lock on an open file, which ends with the process, however it ends.

    Raises:
        PermissionError: the directory must not be written to.
    """
    import filelock

    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        # The library takes a directory that must not be written to for a held lock.
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory)) from None
        return False
    return True


@contextmanager
def lock_directory(directory: Path, does: str, kind: type[DienFastError] = DienFastError) -> Iterator[None]:
    """Keep other processes that lock ``directory`` away while the block runs.

    Args:
        directory: which must be there; the file ``.lock`` in it stays.
        does: what a process that has the lock does, for the message.
        kind: of the error.

    Raises:
        DienFastError: of that kind, if another process has the lock.
        PermissionError: the directory must not be written to.
    """
    import filelock

    lock = filelock.FileLock(directory / LOCK)
    if not take_lock(lock, directory):
        raise kind(f"{directory}: another process {does}; wait until it has ended or choose another --output")
    try:
        yield
    finally:
        lock.release()
