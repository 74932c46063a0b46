"""Directories with one file damaged: bits flipped, cut short, removed, or another file in its place."""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from spoiled_values import spoiled

WAYS = ["flip"] * 6 + ["cut", "cut", "remove", "empty", "insert", "append", "zeros", "swap", "directory", "link"]


@dataclass(frozen=True)
class Damage:
    """What happens to one file of a directory.

    Attributes:
        file: its path in the directory.
        way: one of ``WAYS``, or "value" for a JSON file with other values.
        place: a byte of it.
        mask: which bits are flipped.
        other: another file of the directory.
        content: what the file holds afterwards, of the way "value".
    """

    file: str
    way: str
    place: int = 0
    mask: int = 1
    other: str = ""
    content: str = ""

    def bytes_after(self, before, directory):
        """Return what the file holds afterwards."""
        place = min(self.place, max(len(before) - 1, 0))
        return {
            "flip": lambda: (
                before[:place] + bytes([(before[place] if before else 0) ^ self.mask]) + before[place + 1 :]
            ),
            "cut": lambda: before[:place],
            "empty": lambda: b"",
            "insert": lambda: before[:place] + bytes([self.mask]) * 7 + before[place:],
            "append": lambda: before + bytes([self.mask]),
            "zeros": lambda: before[:place] + bytes(len(before[place : place + 512])) + before[place + 512 :],
            "swap": lambda: (directory / self.other).read_bytes(),
            "value": self.content.encode,
        }[self.way]()

    @contextlib.contextmanager
    def done_to(self, directory):
        """Damage a directory, and make it whole again afterwards."""
        path = directory / self.file
        before = path.read_bytes()
        try:
            if self.way in ("remove", "directory", "link"):
                path.unlink()
            if self.way == "directory":
                path.mkdir()
            elif self.way == "link":
                path.symlink_to(directory / "nowhere")
            elif self.way != "remove":
                path.write_bytes(self.bytes_after(before, directory))
            yield
        finally:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(before)


@st.composite
def damages(draw, directory, pattern="*"):
    """A damage to one of the files of a directory that match."""
    files = [
        path.relative_to(directory).as_posix()
        for path in sorted(Path(directory).rglob(pattern))
        if path.is_file() and path.name != ".lock"
    ]
    file = draw(st.sampled_from(files))
    if file.endswith(".json") and draw(st.booleans()):
        value = draw(spoiled(json.loads((directory / file).read_text(encoding="utf-8"))))
        return Damage(file, "value", content=json.dumps(value))
    size = (directory / file).stat().st_size
    return Damage(
        file,
        draw(st.sampled_from(WAYS)),
        place=draw(st.integers(0, max(size - 1, 0))),
        mask=draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 255])),
        other=draw(st.sampled_from(files)),
    )
