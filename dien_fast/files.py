"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Unfinished files carry this ending; a killed process may leave one behind.
UNFINISHED = ".unfinished"


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, which replaces ``path`` once the block has ended well.

    The content is on the disk (fsync) before the name changes, so that a reader, or a machine that lost
    power, finds the old file or the new one and never a part. If the block raises, ``path`` is untouched.

    Args:
        path: the file to write; its directory is made if needed.

    Raises:
        OSError: with ``path`` as its ``filename``, if the file cannot be written: no space is left, for example.

    Example:
        >>> with write_atomically("metrics.json") as unfinished:  # doctest: +SKIP
        ...     unfinished.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The old ending stays last, because writers such as matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f"{UNFINISHED}{path.suffix}")
    os.close(handle)
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
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        # A failed write, such as to a full disk, names no file; a failed opening names the unfinished one.
        if error.errno is not None and error.filename in (None, name):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def is_unfinished(path: str | Path) -> bool:
    """Return whether ``path`` is named as a file that :func:`write_atomically` had not finished."""
    name = Path(path).name
    return name.startswith(".") and UNFINISHED in name


def remove_unfinished(directory: str | Path) -> None:
    """Remove what a killed process was writing in ``directory``."""
    for path in Path(directory).glob(f".*{UNFINISHED}*"):
        path.unlink(missing_ok=True)
