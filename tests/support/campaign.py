"""Many generated cases for one test, and the property that all of them hold.

Whatever the input is, there are two outcomes: the right answer, or a refusal in one sentence with status 2. A
traceback, a hang, a crash or another number is a failure.

The normal run draws the same cases each time. By hand more, and other cases each time::

    DIEN_FAST_HYPOTHESIS=100000 python -m pytest -m '' -s tests/robustness
"""

import contextlib
import io
import os
import resource
import signal
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from dien_fast.cli import main
from dien_fast.errors import DienFastError

ASKED = os.environ.get("DIEN_FAST_HYPOTHESIS")
MOST = int(os.environ.get("DIEN_FAST_MOST_CASES", 10**9))  # of the same cases as always, where cases are slow
SECONDS = 30  # that a case may take; the slowest takes 3 on one busy core
MEMORY = 3 << 30  # bytes that a case may add to the process
SENTENCE = 1500  # characters of the longest sentence


class HangError(BaseException):
    """A case took too long; no handler of ordinary errors may catch this."""


class Tally(Counter):
    """Counts the outcomes of a campaign, and prints them when it has ended."""

    def __init__(self, title):
        super().__init__()
        self.title = title

    def check(self, least_right=0.02, least_refused=0.02):
        """Print the counts; fail where nearly all cases had the same outcome, so that little was tested."""
        total = self.total()
        print(f"\n{self.title}: {total:,} cases, " + ", ".join(f"{self[name]:,} {name}" for name in sorted(self)))
        if total >= 100:
            assert self["right"] >= least_right * total, self
            assert self["refused"] >= least_refused * total, self


def amounts(quick, slow):
    """Run a test with ``count`` cases: few, and many where slow tests are run."""
    if ASKED is not None:
        return pytest.mark.parametrize("count", [int(ASKED)])
    return pytest.mark.parametrize("count", [quick, pytest.param(min(slow, MOST), marks=pytest.mark.slow)])


def campaign(count):
    """Settings of Hypothesis for so many cases."""
    return settings(
        max_examples=count,
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def bounded(seconds=SECONDS, memory=MEMORY):
    """Let a case take no more than some time and memory."""

    def hang(number, frame):
        raise HangError(f"the case took more than {seconds} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def check_sentence(text):
    """Fail unless a message is a sentence that a reader of it can act on."""
    assert text.strip(), "the message is empty"
    assert "Traceback" not in text, text
    assert " object at 0x" not in text, text


def attempt(call, *arguments, **named):
    """Return what a call of the library returns, and None; or None and the sentence with which it refuses.

    Any other error than the library's own fails the test.
    """
    with bounded():
        try:
            return call(*arguments, **named), None
        except DienFastError as error:
            sentence = " ".join(str(error).split())
    check_sentence(sentence)
    return None, sentence


def command(*words, stdin=b""):
    """Run the command in this process; return its status, what it printed, and its sentence where it refuses."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace")
    )
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        bounded(),
        mock.patch("sys.stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
    printed, complaint = (_text(stream) for stream in (out, err))
    if status == 0:
        return 0, printed, None
    assert status == 2, (status, complaint)
    sentence = complaint.strip().splitlines()[-1]
    # Before it may stand what is known of each column, and how argparse says a command is used.
    assert ": error: " in sentence, complaint
    assert "Traceback" not in complaint, complaint
    assert len(sentence) <= SENTENCE, f"{len(sentence)} characters: {sentence[:300]}"
    check_sentence(sentence)
    return 2, printed, sentence.partition(": error: ")[2]


def _text(stream):
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8")
