"""Files are written whole or not at all."""

import errno
import os
import stat

import pytest
from full_disk import files_of_at_most

from dien_fast.files import is_unfinished, remove_unfinished, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "metrics.json"
    target.write_text("old")

    def interrupted():
        with write_atomically(target) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_replaces_creates_directories_and_has_usual_permissions(tmp_path):
    target = tmp_path / "new" / "metrics.json"
    for text in ("first", "second"):
        with write_atomically(target) as unfinished:
            assert unfinished.parent == target.parent
            assert unfinished.suffix == ".json"
            unfinished.write_text(text)
        assert target.read_text() == text
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    assert list(target.parent.iterdir()) == [target]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".best.x1.unfinished.pt").write_bytes(b"half")
    (tmp_path / "best.pt").write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir() if is_unfinished(path)] == [".best.x1.unfinished.pt"]
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    def write():
        with write_atomically(tmp_path / "scored.csv") as unfinished:
            unfinished.write_text("a" * 3000)

    with files_of_at_most(2000), pytest.raises(OSError, match="File too large") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "scored.csv"))
    assert list(tmp_path.iterdir()) == []
    write()


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    def write():
        with write_atomically(tmp_path / "scored.csv"):
            (tmp_path / "not there").read_text()

    with pytest.raises(FileNotFoundError) as caught:
        write()
    assert caught.value.filename == str(tmp_path / "not there")
