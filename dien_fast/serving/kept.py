"""What a store keeps of a user: states of the newest events, and the words of these events.

A value is the bytes ``DFS1``, the CRC-32 of all that follows, the fingerprint of the model whose states they are,
the length of the words' JSON as int32, the JSON, the number of states of each group as int32, and the states as
float32.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dien_fast.errors import DataError

DIGEST = 16  # bytes of a fingerprint
_FORMAT = b"DFS1"
_SUM = 4  # bytes of the CRC-32

# The words of events by history column, oldest first; None where one is missing.
Words = Mapping[str, list[str | None]]


class UnknownUserError(DataError):
    """No events are kept of a user."""


class OutdatedStatesError(DataError):
    """The states kept of a user are of another model, which read other columns of events than this one."""


class Kept(NamedTuple):
    """What is kept of a user.

    Attributes:
        words: of the newest events.
        states: by group ``[N, D]`` float32; None where they are of another model.
    """

    words: Words
    states: dict[str, np.ndarray] | None

    def pack(self, fingerprint: bytes) -> bytes:
        """Return a value for a store, of states that must be there.

        Args:
            fingerprint: of the model.
        """
        assert self.states is not None
        words = json.dumps(self.words, ensure_ascii=False, separators=(",", ":")).encode()
        states = [np.ascontiguousarray(part, np.float32) for part in self.states.values()]
        lengths = np.array([len(words)], np.int32), np.array([len(part) for part in states], np.int32)
        parts = [fingerprint, lengths[0].tobytes(), words, lengths[1].tobytes()]
        content = b"".join([*parts, *(part.tobytes() for part in states)])
        return _FORMAT + _checksum(content) + content

    @classmethod
    def unpack(cls, value: bytes, fingerprint: bytes, widths: Mapping[str, int]) -> Kept | None:
        """Return what :meth:`pack` wrote; None where another version of this package did.

        Args:
            value: of a store.
            fingerprint: of the model whose states are wanted.
            widths: by group, the width of its states.

        Raises:
            DataError: the value is damaged.
        """
        if value[: len(_FORMAT)] != _FORMAT:
            return None
        begin = len(_FORMAT) + _SUM
        if value[len(_FORMAT) : begin] != _checksum(memoryview(value)[begin:]):
            raise DataError("its checksum is wrong")
        start = begin + DIGEST
        same = value[begin:start] == fingerprint
        end = start + 4 + int(np.frombuffer(value, np.int32, 1, start)[0])
        words = json.loads(value[start + 4 : end])
        if not same:
            return cls(words, None)
        counts = np.frombuffer(value, np.int32, len(widths), end).tolist()
        start, states = end + 4 * len(widths), {}
        for (name, width), count in zip(widths.items(), counts, strict=True):
            states[name] = np.frombuffer(value, np.float32, count * width, start).reshape(count, width)
            start += 4 * count * width
        return cls(words, states)


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_SUM, "little")
