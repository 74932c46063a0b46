"""Signals at random moments: what goes on afterwards ends as if nothing had happened, bit for bit.

A case interrupts a command once or several times, looks at what is there, goes on as its messages and the pages
say, and compares the end with that of a command that nobody disturbed. By hand more moments, and every change of
the disk::

    DIEN_FAST_MOMENTS=200 python -m pytest -s -m '' tests/faults/test_signals.py
"""

import itertools
import shutil
import signal

import pytest
from disturbed import KINDS
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
@pytest.mark.parametrize(
    ("name", "step"),
    [("prepare", 1), ("prepare --overwrite", 1), ("export again", 1), ("train", 5), ("train --overwrite", 5)],
)
def test_killed_at_changes_of_the_disk(undisturbed, tmp_path, name, step):
    """SIGKILL before each, or each fifth, name that is made, renamed, removed or put on the disk."""
    step = 1 if MOMENTS >= 200 else step
    kind, whole, _ = undisturbed(name)
    for kills, change in enumerate(itertools.count(1, step)):  # noqa: B007
        output = tmp_path / str(change)
        kind.begin(output)
        status, printed = finished(kind.first(output), (kill_at_change, change, kind.before))
        assert status in (0, -signal.SIGKILL), printed
        kind.look(output, whole)
        if not kind.is_over(output):
            again, printed = finished(kind.again(output), kind.before)
            assert again == 0, (change, printed)
        kind.compare(output, whole)
        shutil.rmtree(output)
        if status == 0:
            break
    print(f"\n{name}: killed at {kills} changes of the disk")
    assert kills > 1


def cases_of(kind, whole, most):
    def case(output, moments):
        return one_case(kind, whole, output, moments, most)

    return case


@pytest.mark.parametrize("name", ["prepare"])
def test_a_few_moments(undisturbed, tmp_path, name):
    kind, whole, seconds = undisturbed(name)
    run_moments(name, cases_of(kind, whole, 2), seconds, tmp_path / "output", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_any_moment(undisturbed, tmp_path, name):
    kind, whole, seconds = undisturbed(name)
    run_moments(name, cases_of(kind, whole, MOST), seconds, tmp_path / "output", MOMENTS)
