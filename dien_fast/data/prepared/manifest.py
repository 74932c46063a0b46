"""The manifest of prepared data: what the directory holds, written last, so that a half-written one has none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dien_fast.data.schema import Schema
from dien_fast.errors import DataError
from dien_fast.files import parse_json, path_inside, write_atomically

FORMAT, VERSION = "dien-fast prepared data", 1
MANIFEST = "manifest.json"
# Where a preparation keeps what it has done, until it is whole.
PROGRESS = ".progress"
PARTS = ("train", "valid", "test")
# The number of a row in the input, which is stored with it, takes so many.
ROW_BYTES = 8
TITLES = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Block:
    """A record batch of a shard.

    Attributes:
        rows: how many.
        offset: where it begins in the file.
        size: bytes.
        crc32: of these bytes.
    """

    rows: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Shard:
    """An Arrow IPC file with rows of one part.

    Attributes:
        file: its name.
        part: "train", "valid" or "test".
        size: bytes.
        blocks: its record batches, in order.
        rest_crc32: of the bytes outside of the blocks, which say what these hold; None in earlier data.
    """

    file: str
    part: str
    size: int
    blocks: list[Block]
    rest_crc32: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the shard as plain values."""
        blocks = [[block.rows, block.offset, block.size, block.crc32] for block in self.blocks]
        content = {"file": self.file, "part": self.part, "size": self.size, "blocks": blocks}
        return content if self.rest_crc32 is None else content | {"rest_crc32": self.rest_crc32}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Shard:
        """Return what :meth:`to_dict` described."""
        blocks = [Block(*map(int, block)) for block in content["blocks"]]
        rest = content.get("rest_crc32")
        shard = cls(
            str(content["file"]),
            str(content["part"]),
            int(content["size"]),
            blocks,
            None if rest is None else int(rest),
        )
        shard._check()
        return shard

    def _check(self) -> None:
        """Refuse numbers that no shard can have, before any of them decides how much memory is taken.

        Raises:
            ValueError: naming the block.
        """
        if self.part not in PARTS:
            raise ValueError(f"{self.file} is of the part {self.part!r}")
        for number, block in enumerate(self.blocks):
            inside = block.offset >= 0 and block.size >= 0 and block.offset + block.size <= self.size
            if not inside or not 0 < block.rows * ROW_BYTES <= block.size:
                raise ValueError(f"{self.file} cannot have {block.rows:,} rows in block {number}")


@dataclass
class Manifest:
    """What a directory of prepared data holds.

    Attributes:
        schema: :meth:`dien_fast.data.Schema.to_dict` of the columns.
        source: what the rows were made from.
        split: a line that says how they were divided.
        fingerprint: of the encoders.
        rows: of each part.
        shards: the files with the rows.
        unknown: of each part and column, how many words there are, and how many the encoders do not know.
        checksums: sha256 of the other files, by name.
    """

    schema: dict[str, Any]
    source: dict[str, Any]
    split: str
    fingerprint: str
    rows: dict[str, int]
    shards: list[Shard]
    unknown: dict[str, dict[str, list[int]]]
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def click_schema(self) -> Schema:
        """The schema as an object."""
        return Schema.from_dict(self.schema)

    def save(self, directory: Path) -> None:
        """Write the manifest."""
        content = {"format": FORMAT, "version": VERSION} | asdict(self)
        content["shards"] = [shard.to_dict() for shard in self.shards]
        content["checksum"] = _checksum(content)
        with write_atomically(directory / MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of a directory, and look whether its files are there and have their sizes.

        Raises:
            DataError: there is none, it is damaged or of another version, or a file is missing or damaged.
        """
        path = directory / MANIFEST
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise DataError(f"{path}: the manifest is damaged: it is not JSON") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path}: not the manifest of prepared data")
        version = content.get("version")
        if version != VERSION:
            raise DataError(
                f"{path}: the data were prepared in version {version!r} of the format, and this dien-fast reads "
                f"version {VERSION}; prepare them anew"
            )
        # Earlier ones have none.
        checksum = content.pop("checksum", None)
        if checksum is not None and checksum != _checksum(content):
            raise DataError(f"{path}: the manifest is damaged: its checksum is not that of its content")
        del content["format"], content["version"]
        try:
            content["shards"] = [Shard.from_dict(shard) for shard in content["shards"]]
            manifest = cls(**content)
            manifest._check()
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"{path}: the manifest is damaged ({error!r})") from None
        for shard in manifest.shards:
            check_size(path_inside(directory, shard.file, DataError), shard.size)
        return manifest

    def _check(self) -> None:
        """Refuse numbers that contradict one another.

        Raises:
            ValueError: naming them.
        """
        for part in PARTS:
            stored = sum(block.rows for shard in self.shards if shard.part == part for block in shard.blocks)
            if self.rows[part] != stored:
                raise ValueError(f"{self.rows[part]!r} {part} rows, and the shards have {stored:,}")
            for name, counts in self.unknown[part].items():
                if len(counts) != 2 or not all(isinstance(count, int) for count in counts):
                    raise ValueError(f"unknown words of {name!r}: {counts!r}")

    def check_files(self, directory: Path) -> None:
        """Refuse small files that have changed: encoders, and what negatives are drawn from.

        Raises:
            DataError: naming the file.
        """
        for name, expected in self.checksums.items():
            if file_digest(path_inside(directory, name, DataError)) != expected:
                raise DataError(f"{directory / name}: the file is damaged: its checksum is not the manifest's")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_size(path: Path, expected: int) -> None:
    """Refuse a shard that is missing or was cut short.

    Raises:
        DataError: naming it.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: the shard cannot be read: {error.strerror}") from None
    if size != expected:
        raise DataError(f"{path}: the shard is damaged: it has {size:,} bytes, the manifest says {expected:,}")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        DataError: there is none.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}") from None


def is_prepared(path: str | Path) -> bool:
    """Return whether ``path`` is a directory of prepared data, or of data whose preparation was interrupted."""
    return (Path(path) / MANIFEST).is_file() or (Path(path) / PROGRESS).is_dir()
