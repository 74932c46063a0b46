"""Commands in processes of their own, to which something happens: a signal, a limit, a clock that jumps.

A server process imports the package once and forks for each command, so that a case takes a second. It is Python's
own ``forkserver``: one thread, nothing computed yet, no instruction set chosen.
"""

import ctypes
import gc
import itertools
import multiprocessing
import os
import pkgutil
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from prepared_clicks import small_pieces
from torch.optim.optimizer import register_optimizer_step_post_hook

from dien_fast.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *["dien_fast.cli", "dien_fast.data", "dien_fast.data.prepared.prepare", "dien_fast.training.pipeline"],
        *["accelerate", "matplotlib.pyplot", "optuna", "scipy.stats", "sqlalchemy", "alembic", "torch._dynamo"],
        *["dien_fast.serving.http", "dien_fast.serving.stores", "uvicorn", "uvloop", "lmdb"],
    ]
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_SECONDS = 120.0
# How many moments of a command are tried.
MOMENTS = int(os.environ.get("DIEN_FAST_MOMENTS", "40"))


class Forked:
    """A function that runs in a process of its own, whose exit status it returns.

    Args:
        function: of a module.
        arguments: for it.
        before: another function, with its arguments, called in the process before.
    """

    def __init__(self, function, *arguments, before=None):
        ready, is_ready = _CONTEXT.Pipe(duplex=False)
        # A pipe, as a limit of files would hold for a file of what it prints too.
        self._prints, writes = _CONTEXT.Pipe(duplex=False)
        self._printed = b""
        self.process = _CONTEXT.Process(target=_run, args=(function, arguments, writes, is_ready, before))
        self.process.start()
        writes.close()
        is_ready.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ready.recv()
        ready.close()
        self.begin = time.perf_counter()

    def _read(self):
        while piece := os.read(self._prints.fileno(), 1 << 16):
            self._printed += piece

    def send(self, number):
        """Send a signal; return whether the process was still there."""
        if not self.process.is_alive():
            return False
        # Another thread may have seen its end meanwhile.
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        return True

    def wait(self):
        """Wait until it has ended; return its exit status, negative where a signal ended it."""
        self.process.join(_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.printed()}")
        self.seconds = time.perf_counter() - self.begin
        # Workers that outlive it hold the pipe open.
        self._reader.join(5)
        return self.process.exitcode

    def printed(self):
        """Return what it has printed to stdout and stderr."""
        return self._printed.decode("utf-8", "replace")


class Command(Forked):
    """A ``dien-fast`` command that runs in a process of its own.

    Args:
        arguments: the words after ``dien-fast``.
        before: as :class:`Forked` takes it.
    """

    def __init__(self, arguments, before=None):
        super().__init__(main, [str(word) for word in arguments], before=before)


def _run(function, arguments, writes, is_ready, before):
    for stream in (1, 2):
        os.dup2(writes.fileno(), stream)
    writes.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    torch.set_num_threads(1)
    gc.freeze()
    # A shell lets what runs in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before is not None:
        first, *given = before
        first(*given)
    is_ready.send(None)
    is_ready.close()
    status = function(*arguments)
    # A signal that comes now is none of the function's.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    sys.exit(status)


def finished(arguments, before=None):
    """Run a command to its end; return its exit status and what it printed."""
    command = Command(arguments, before)
    return command.wait(), command.printed()


def interrupted(command, number, after):
    """Send a command a signal after some seconds; return whether it had not ended before.

    It then has to end as a command does: killed, with status 0 behind a checkpoint, or with the status of the
    signal and a line that says so, but never with a traceback.
    """
    deadline = command.begin + after
    while command.process.is_alive() and (left := deadline - time.perf_counter()) > 0:
        command.process.join(left)
    came = command.send(number)
    status, printed = command.wait(), command.printed()
    expected = {
        signal.SIGKILL: {0, -signal.SIGKILL},
        signal.SIGTERM: {0, 128 + signal.SIGTERM, -signal.SIGTERM},
        signal.SIGINT: {0, 128 + signal.SIGINT},
    }
    assert status in expected[number], (status, printed)
    if number != signal.SIGKILL:
        assert "Traceback" not in printed, printed
        assert "Exception ignored" not in printed, printed
    return came and status != 0


class Interruptions:
    """Signals and moments, the same for the same seed.

    Args:
        seed: names the case.
        seconds: what the command takes without them.
    """

    def __init__(self, seed, seconds):
        self._random, self._seconds = random.Random(seed), seconds

    def next(self):
        return self._random.choice(SIGNALS), self._random.uniform(0.0, self._seconds)


def run_moments(name, case, seconds, output, moments):
    """Run cases until signals came at so many moments, and say how many of each.

    Args:
        name: of what is disturbed.
        case: takes a path that is not there and :class:`Interruptions`; returns the signals that came in time.
        seconds: what is disturbed takes without signals.
        output: that path; it is removed after each case.
        moments: how many.
    """
    came, seed = Counter(), 0
    while came.total() < moments:
        seed += 1
        try:
            came.update(case(output, Interruptions(seed, seconds)))
        except BaseException as error:
            error.add_note(f"in case {seed} of {name}")
            raise
        shutil.rmtree(output)
        assert seed < 10 * moments, "the signals come too late"
    shown = ", ".join(f"{count} {signal.Signals(number).name}" for number, count in sorted(came.items()))
    print(f"\n{name}: {came.total()} moments in {seed} cases, {shown}")


def signal_itself(number, step):
    """Let this process send itself a signal when that many steps of optimizers are made."""
    steps = itertools.count(1)

    def count(*_):
        if next(steps) == step:
            os.kill(os.getpid(), number)

    register_optimizer_step_post_hook(count)


def signal_at(name, number):
    """Let this process send itself a signal whenever a function is called.

    Args:
        name: of the function, with its module.
        number: of the signal.
    """
    original = pkgutil.resolve_name(name)

    def signalled(*arguments, **options):
        os.kill(os.getpid(), number)
        return original(*arguments, **options)

    owner, _, attribute = name.rpartition(".")
    setattr(pkgutil.resolve_name(owner), attribute, signalled)


def free_port():
    """Return the number of a port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def set_environment(variables):
    """Set environment variables of this process."""
    os.environ.update(variables)


def limit_files(size):
    """Let no file of this process grow beyond ``size`` bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_stream(number):
    """Let standard output (1) or standard error (2) of this process lie on a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def limit_memory(size):
    """Let this process have ``size`` bytes of addresses more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + size, now + size))


def jumping_clock(seed):
    """Let the wall clock jump by up to a day, to and fro, whenever it is read."""
    rng, real = random.Random(seed), time.time

    def jumped():
        return real() + rng.uniform(-86400.0, 86400.0)

    time.time = jumped
    time.time_ns = lambda: int(1e9 * jumped())


def small_pieces_here():
    """Let prepared data have small ranges and blocks in this process, so that there are many of both."""
    small_pieces(pytest.MonkeyPatch())


def kill_at_change(count, before):
    """Let this process be killed before the ``count``-th time that it changes names or puts them on the disk.

    Args:
        count: from 1 on.
        before: what else to call before the command.
    """
    left = itertools.count(count - 1, -1)

    def kill():
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each_change(kill, before)


def count_changes(path, before):
    """Let this process add a byte to a file before each time that it changes names or puts them on the disk.

    Args:
        path: of that file.
        before: what else to call before the command.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _before_each_change(lambda: os.write(file, b"."), before)


def _before_each_change(call, before):
    def counted(original):
        def change(*arguments, **options):
            call()
            return original(*arguments, **options)

        return change

    for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    if before is not None:
        first, *given = before
        first(*given)


def hold_after_lock(mark):
    """Let this process write the file ``mark`` once it has a lock on a directory, and then wait."""
    from dien_fast import files
    from dien_fast.training import directory

    take = files.take_lock

    def taken(lock, place):
        if not take(lock, place):
            return False
        Path(mark).touch()
        time.sleep(_SECONDS)
        return True

    files.take_lock = directory.take_lock = taken


_OVERRIDE, _READ_SEARCH = 1, 2  # of capabilities(7)


def without_rights_of_root():
    """Let permissions of files hold for this process, even if it is root's."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and the same for later capabilities
    library = ctypes.CDLL(None, use_errno=True)
    assert library.capget(header, sets) == 0
    for place in range(3):
        sets[place] &= ~(1 << _OVERRIDE | 1 << _READ_SEARCH)
    assert library.capset(header, sets) == 0
