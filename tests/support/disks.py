"""Disks of a chosen size, which fill up, grow, and can be made read-only: memory that root mounts."""

import contextlib
import subprocess

import pytest

PAGE = 4096
LARGE = 1 << 28


class Disk:
    """A file system in memory.

    Args:
        place: the directory where it is.

    Attributes:
        place: the same.
    """

    def __init__(self, place):
        self.place = place
        done = self._mount("size=64m", "-t", "tmpfs", "tmpfs")
        if done.returncode != 0:
            pytest.skip(f"there is no disk of a chosen size: {done.stderr.strip()}")

    def _mount(self, options, *words):
        return subprocess.run(
            ["mount", "-o", options, *words, self.place], capture_output=True, text=True, check=False
        )

    def _change(self, options):
        done = self._mount(f"remount,{options}")
        assert done.returncode == 0, done.stderr

    def leave(self, size):
        """Let there be room for so many more bytes, in whole pages."""
        used = sum(path.stat().st_blocks for path in self.place.rglob("*")) * 512
        pages = -(-(used + size) // PAGE)
        self._change(f"size={max(1, pages) * PAGE}")

    def read_only(self, *, is_so):
        """Let nothing be written, or all again."""
        self._change("ro" if is_so else "rw")

    def remove(self):
        subprocess.run(["umount", "-l", self.place], check=True)


@contextlib.contextmanager
def disk_at(place):
    """Give a :class:`Disk` at a directory that is made; skip the test where this process may mount none."""
    place.mkdir()
    disk = Disk(place)
    try:
        yield disk
    finally:
        disk.remove()
