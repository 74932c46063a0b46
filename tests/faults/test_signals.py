"""Signals at random moments: what goes on afterwards ends as if nothing had happened, bit for bit.

A case interrupts a command once or several times, looks at what is there, goes on as its messages and the pages
say, and compares the end with that of a command that nobody disturbed. More moments, by hand::

    DIEN_FAST_MOMENTS=200 python -m pytest -s -m '' tests/faults/test_signals.py
"""

import shutil
import signal

import pytest
from faults import MOMENTS, Command, finished, interrupted, kill_at_change, run_moments

MOST = 4  # interruptions of a case


def one_case(kind, whole, output, moments, most):
    """Interrupt a command up to so many times and let it come to its end; return the signals that came in time."""
    came = []
    kind.begin(output)
    words = kind.first(output)
    for _ in range(most):
        number, after = moments.next()
        if interrupted(Command(words, kind.before), number, after):
            came.append(number)
        kind.look(output, whole)
        if kind.is_over(output):
            break
        words = kind.again(output)
    else:
        status, printed = finished(words, kind.before)
        assert status == 0, printed
    kind.compare(output, whole)
    return came


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "prepare --overwrite", "export again"])
def test_killed_at_each_change_of_the_disk(undisturbed, tmp_path, name):
    """SIGKILL before each file or directory that is renamed, removed, made or put on the disk."""
    kind, whole, _ = undisturbed(name)
    status, count = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        output, count = tmp_path / str(count), count + 1
        kind.begin(output)
        status, printed = finished(kind.first(output), (kill_at_change, count, kind.before))
        assert status in (0, -signal.SIGKILL), printed
        kind.look(output, whole)
        if not kind.is_over(output):
            again, printed = finished(kind.again(output), kind.before)
            assert again == 0, (count, printed)
        kind.compare(output, whole)
        shutil.rmtree(output)
    print(f"\n{name}: killed at {count - 1} changes of the disk")
    assert count > 2


def cases_of(kind, whole, most):
    def case(output, moments):
        return one_case(kind, whole, output, moments, most)

    return case


@pytest.mark.parametrize("name", ["prepare"])
def test_a_few_moments(undisturbed, tmp_path, name):
    kind, whole, seconds = undisturbed(name)
    run_moments(name, cases_of(kind, whole, 2), seconds, tmp_path / "output", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "prepare --overwrite", "train", "train --overwrite"])
def test_any_moment(undisturbed, tmp_path, name):
    kind, whole, seconds = undisturbed(name)
    run_moments(name, cases_of(kind, whole, MOST), seconds, tmp_path / "output", MOMENTS)
