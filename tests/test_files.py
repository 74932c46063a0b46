"""Files are written whole or not at all."""

import errno
import os
import signal
import stat

import pytest
from full_disk import files_of_at_most
from power import Power

from dien_fast.files import (
    is_unfinished,
    make_directory,
    remove_abandoned,
    remove_unfinished,
    sync_directory,
    write_atomically,
)


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


def test_a_name_is_on_the_disk_behind_the_block(tmp_path, monkeypatch):
    power = Power(monkeypatch)
    with write_atomically(tmp_path / "a" / "b" / "metrics.json") as unfinished:
        unfinished.write_text("{}")
    assert (power.renamed, power.unsafe) == (1, {})


def test_directories_that_are_made_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("dien_fast.files.sync_directory", synced.append)
    for _ in range(2):
        make_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path / "a", tmp_path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_directories_is_no_error(tmp_path, monkeypatch, number):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:
        sync_directory(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            sync_directory(tmp_path)


def abandon(path):
    """Let a process be killed while it writes a file."""
    child = os.fork()
    if child == 0:
        try:
            with write_atomically(path) as unfinished:
                unfinished.write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    target = tmp_path / "model[1].onnx"
    abandon(target)
    (abandoned,) = tmp_path.iterdir()
    assert is_unfinished(abandoned)
    others = {
        tmp_path / name for name in ("model1.onnx", ".other.x.unfinished.onnx", ".model[1].x.unfinished.pt2")
    }
    for other in others:
        other.touch()
    with write_atomically(target) as unfinished:
        unfinished.write_text("whole")
        remove_abandoned(target)
        assert {*tmp_path.iterdir()} == {unfinished, *others}
    remove_abandoned(target)
    assert {*tmp_path.iterdir()} == {target, *others}


def test_a_file_that_another_process_removed_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    import fcntl

    lock, made = fcntl.flock, []

    def late(handle, how):
        if not made:
            made.extend(tmp_path.iterdir())
            made[0].unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with write_atomically(tmp_path / "scored.csv") as unfinished:
        assert unfinished not in made
        unfinished.write_text("whole")
    assert (tmp_path / "scored.csv").read_text() == "whole"
