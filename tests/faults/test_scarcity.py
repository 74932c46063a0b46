"""Too little of something: of the disk, of rights, of memory, of time, of the table that is read.

A command then ends with one sentence that names the path, and leaves nothing half-written that looks whole. When
the cause is gone, the same command ends as one that nobody disturbed, bit for bit.
"""

import json
import random
import shutil
import signal
import time

import pytest
from disks import LARGE, disk_at
from disturbed import KINDS
from faults import Command, Forked, fill_stream, finished, jumping_clock, limit_memory, without_rights_of_root
from served import Server

from dien_fast.errors import DienFastError
from dien_fast.serving.stores import LmdbStore

# `make test` has one of them.
NAMES = [name if name == "prepare" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]


def both(*functions):
    """What a process calls before a command: some functions of no arguments, and what else is to be called."""
    return (_call, functions)


def _call(functions):
    for first, *given in filter(None, functions):
        first(*given)


def check_refused(status, printed, *named):
    """A command must have ended with status 2 and one sentence, which names one of these."""
    assert status == 2, (status, printed)
    assert "Traceback" not in printed, printed
    assert "Exception ignored" not in printed, printed
    sentence = printed.strip().splitlines()[-1]
    assert printed.count("dien-fast: error: ") == 1, printed
    assert sentence.startswith("dien-fast: error: "), printed
    assert any(str(name) in sentence for name in named), printed


def go_on(kind, output, whole):
    """Look at what is left, run the command again, and compare its end."""
    kind.look(output, whole)
    if not kind.is_over(output):
        status, printed = finished(kind.again(output), kind.before)
        assert status == 0, printed
    kind.compare(output, whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(undisturbed, tmp_path, name):
    """Room for a part of what the command writes: nothing, a third, two thirds, nearly all."""
    kind, whole, _ = undisturbed(name)
    size = sum(path.stat().st_blocks for path in whole.rglob("*")) * 512
    refused = 0
    for part in (0.0, 0.3, 0.6, 0.9):
        with disk_at(tmp_path / f"{part}") as disk:
            output = disk.place / "out"
            kind.begin(output)
            disk.leave(int(part * size))
            status, printed = finished(kind.first(output), kind.before)
            disk.leave(LARGE)
            if status != 0:
                check_refused(status, printed, output)
                refused += 1
            go_on(kind, output, whole)
    print(f"\n{name}: refused on {refused} of 4 full disks")
    assert refused >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_must_not_be_written_to(undisturbed, tmp_path, name):
    kind, whole, _ = undisturbed(name)
    with disk_at(tmp_path / "disk") as disk:
        output = disk.place / "out"
        kind.begin(output)
        disk.read_only(is_so=True)
        status, printed = finished(kind.first(output), kind.before)
        disk.read_only(is_so=False)
        check_refused(status, printed, output)
        assert "Read-only file system" in printed
        go_on(kind, output, whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_must_not_be_written_to(undisturbed, tmp_path, name):
    kind, whole, _ = undisturbed(name)
    place = tmp_path / "place"
    place.mkdir()
    output = place / "out"
    kind.begin(output)
    directories = [path for path in (place, *place.rglob("*")) if path.is_dir()]
    for path in directories:
        path.chmod(0o500)
    status, printed = finished(kind.first(output), both((without_rights_of_root,), kind.before))
    for path in directories:
        path.chmod(0o700)
    check_refused(status, printed, output)
    assert "Permission denied" in printed
    go_on(kind, output, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_little_memory(undisturbed, tmp_path, name):
    """From next to none to enough; PyTorch and the C library may end the process themselves."""
    kind, whole, _ = undisturbed(name)
    statuses = []
    for size in (12, 20, 24, 27):
        output = tmp_path / f"{size}"
        kind.begin(output)
        command = Command(kind.first(output), both((limit_memory, 1 << size), kind.before))
        status, printed = command.wait(), command.printed()
        statuses.append(status)
        if status == 2:
            check_refused(status, printed, "memory", "failed to map", "launch worker thread")
        else:
            assert status in (0, -signal.SIGABRT), (status, printed)
        go_on(kind, output, whole)
        shutil.rmtree(output)
    print(f"\n{name}: {statuses}")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_a_clock_that_jumps(undisturbed, tmp_path, name):
    kind, whole, _ = undisturbed(name)
    output = tmp_path / "out"
    kind.begin(output)
    status, printed = finished(kind.first(output), both((jumping_clock, 0), kind.before))
    assert status == 0, printed
    assert "Traceback" not in printed, printed
    kind.compare(output, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "train", "tune"])
def test_a_table_that_vanishes(undisturbed, shop, tmp_path, name):
    """A command that has opened the table ends as if it were there; the others name it."""
    kind, whole, seconds = undisturbed(name)
    table, hidden = shop / "clicks.csv", shop / "hidden.csv"
    rng, refused = random.Random(0), 0
    for seed in range(4):
        output = tmp_path / f"{seed}"
        command = Command(kind.first(output), kind.before)
        command.process.join(rng.uniform(0, seconds))
        table.rename(hidden)
        status, printed = command.wait(), command.printed()
        hidden.rename(table)
        if status != 0:
            check_refused(status, printed, table)
            refused += 1
        if output.exists():
            go_on(kind, output, whole)
    print(f"\n{name}: {refused} of 4 refused")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_two_at_a_time(undisturbed, tmp_path, name):
    """Two commands begin at once; one does its work, and the other waits for nobody or is refused."""
    kind, whole, _ = undisturbed(name)
    output = tmp_path / "out"
    kind.begin(output)
    pair = [Command(kind.first(output), kind.before) for _ in range(2)]
    ended = [(command.wait(), command.printed()) for command in pair]
    assert 0 in [status for status, _ in ended], ended
    for status, printed in ended:
        if status != 0:
            check_refused(status, printed, output)
    kind.look(output, whole)
    kind.compare(output, whole)


@pytest.mark.parametrize("words", [["info"], ["serve", "run", "--port", "0"]])
def test_an_output_on_a_full_disk(shop, words):
    words = [shop / word if word == "run" else word for word in words]
    status, printed = finished(words, (fill_stream, 1))
    assert (status, printed) == (2, "dien-fast: error: standard output: No space left on device\n")


def test_a_server_whose_log_is_on_a_full_disk(shop):
    """It loads the run as often as it is asked to, and says nothing of that."""
    server = Server(shop / "run", before=(fill_stream, 2))
    for loads in (1, 2):
        server.command.send(signal.SIGHUP)
        until = time.monotonic() + 60
        while server.metric('dien_fast_reloads_total{result="done"}') < loads and time.monotonic() < until:
            time.sleep(0.05)
    assert server.metric('dien_fast_reloads_total{result="done"}') == 2
    assert server.end() == (0, "")


@pytest.mark.slow
def test_a_store_that_begins_on_a_full_disk(tmp_path):
    """LMDB alone would end the process."""
    with disk_at(tmp_path / "disk") as disk:
        states = disk.place / "states"
        states.mkdir()
        opened = False
        for room in range(0, 40_000, 4096):
            disk.leave(room)
            process = Forked(open_store, states)
            status, printed = process.wait(), process.printed()
            assert status in (0, 2), (status, printed)
            if opened := status == 0:
                break
            assert "No space left on device" in printed, printed
            shutil.rmtree(states)
            states.mkdir()
        print(f"\nopened with {room} bytes")
        assert opened
        assert (states / "lock.mdb").stat().st_size == 8192


def open_store(path):
    try:
        LmdbStore(path).update(["ann"], lambda _: [b"some"])
    except DienFastError as error:
        print(error)
        return 2
    return 0


@pytest.mark.slow
def test_a_server_whose_store_is_on_a_full_disk(shop, tmp_path):
    """Events are refused while there is no room, and none of them counts; then they are added."""
    events = {"past_items": ["i1"] * 50, "past_brands": ["b1"] * 50}
    user = {"country": "NO", "words": "new", "price": 0.4}
    scored = {"user": user, "user_id": "u0", "items": {"item": ["i1"], "brand": ["b1"]}}
    with disk_at(tmp_path / "disk") as disk:
        server = Server(shop / "run", "--states", str(disk.place / "states"))
        added = [server.ask("POST", "/events", events_of("u0", events))]
        before = server.score(scored)
        disk.leave(0)
        # What the store has freed itself takes the first ones.
        for number in range(1, 200):
            status, text = server.ask("POST", "/events", events_of(f"u{number}", events))
            if status != 200:
                break
        assert (status, "cannot write the store" in text) == (500, True), text
        assert str(disk.place) in text
        assert server.score(scored | {"user_id": f"u{number}"})[0] == 404
        assert server.score(scored) == before
        disk.leave(LARGE)
        added.append(server.ask("POST", "/events", events_of(f"u{number}", events)))
        assert {status for status, _ in added} == {200}
        after = server.score(scored | {"user_id": f"u{number}"})
        assert before[0] == after[0] == 200
        assert before[1] == after[1]
        status, printed = server.end()
        assert status == 0, printed


def events_of(user, events):
    return json.dumps({"user_id": user, "events": events})
