"""What a loss of power may undo: names that changed in a directory that was not put on the disk since."""

import os
import stat
from pathlib import Path


class Power:
    """Watches which names are not on the disk yet, and fails where a file is removed before they are.

    Whatever is removed is needed no more because another file has taken its place. After a loss of power, the one
    may be gone and the other without its name.

    Args:
        monkeypatch: of the test.

    Attributes:
        unsafe: directories with such names, by their numbers.
        renamed: how many names have changed.
    """

    def __init__(self, monkeypatch):
        self.unsafe, self.renamed = {}, 0
        self._synced = set()
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._renaming(getattr(os, name)))
        for name in ("unlink", "remove", "rmdir"):
            monkeypatch.setattr(os, name, self._removing(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._syncing(os.fsync))

    def _renaming(self, original):
        def rename(source, target, **options):
            content = Path(source).stat()
            assert stat.S_ISDIR(content.st_mode) or content.st_ino in self._synced, f"{source} is not on the disk"
            original(source, target, **options)
            directory = Path(target).parent
            self.unsafe[directory.stat().st_ino] = directory
            self.renamed += 1

        return rename

    def _removing(self, original):
        def remove(path, **options):
            assert not self.unsafe, f"{path} is removed before the names in {self.unsafe} are on the disk"
            return original(path, **options)

        return remove

    def _syncing(self, original):
        def fsync(handle):
            original(handle)
            number = os.fstat(handle).st_ino
            self._synced.add(number)
            self.unsafe.pop(number, None)

        return fsync
