"""Stores of bytes by the name of a user: in the process, and on the disk."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dien_fast.errors import DienFastError, one_sentence
from dien_fast.files import make_directory

# Of LMDB's table of 126 readers.
_LOCK_BYTES = 8192
# From what is kept of some users to what is to be kept.
Change = Callable[[list[bytes | None]], Sequence[bytes]]


class StateStore(ABC):
    """Bytes by the name of a user."""

    @abstractmethod
    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""

    @abstractmethod
    def update(self, users: Sequence[str], change: Change) -> None:
        """Replace what is kept of users, all or none; nobody else writes meanwhile.

        Args:
            users: their names, each once.
            change: gets what :meth:`get` returns and returns what is to be kept of each. If it raises, all stays.
        """

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values by user, all or none, in place of what was kept."""
        self.update([*values], lambda _: [*values.values()])


class MemoryStore(StateStore):
    """A store in this process.

    Example:
        >>> store = MemoryStore()
        >>> store.put({"ann": b"1"})
        >>> store.get(["ann", "bob"])
        [b'1', None]
    """

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._writing = threading.Lock()

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""
        return [self._values.get(user) for user in users]

    def update(self, users: Sequence[str], change: Change) -> None:
        """Replace what is kept of users, all or none; nobody else writes meanwhile."""
        with self._writing:
            self._values.update(dict(zip(users, change(self.get(users)), strict=True)))


class LmdbStore(StateStore):
    """A store on the disk, which other processes of this machine read at the same time.

    LMDB rather than RocksDB, which one process opens at a time.

    Args:
        path: a directory, which is made if needed.
        size: bytes that the store may grow to; the file has no holes of that size.

    Raises:
        ImportError: lmdb is not installed.
        DienFastError: the directory cannot be opened.

    Example:
        >>> LmdbStore("states")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, size: int = 2**36) -> None:
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise ImportError('lmdb is not installed: pip install "dien-fast[serve]"') from error
        self.path = Path(path)
        self._full, self._error = lmdb.MapFullError, lmdb.Error
        try:
            make_directory(self.path)
            _reserve(self.path / "lock.mdb", _LOCK_BYTES)
            self._environment = lmdb.open(str(path), map_size=size)
        except (OSError, ValueError, lmdb.Error) as error:
            raise DienFastError(f"cannot open the store {path}: {one_sentence(error)}") from None

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""
        with self._environment.begin() as transaction:
            return [transaction.get(_key(user)) for user in users]

    def update(self, users: Sequence[str], change: Change) -> None:
        """Replace what is kept of users, all or none; no other thread or process writes meanwhile.

        Raises:
            DienFastError: the store is full, or cannot be written.
        """
        keys = [_key(user) for user in users]
        try:
            with self._environment.begin(write=True) as transaction:
                before = [transaction.get(key) for key in keys]
                for key, value in zip(keys, change(before), strict=True):
                    transaction.put(key, value)
        except self._full:
            size = self._environment.info()["map_size"]
            raise DienFastError(f"the store {self.path} is full: it has grown to {size} bytes") from None
        except self._error as error:
            raise DienFastError(f"cannot write the store {self.path}: {error}") from None


def _reserve(path: Path, size: int) -> None:
    """Let a file have its bytes on the disk: where LMDB writes into holes of it, a full disk ends the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)


def _key(user: str) -> bytes:
    # LMDB takes keys of at most 511 bytes.
    return hashlib.blake2b(user.encode(), digest_size=16).digest()
