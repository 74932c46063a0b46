"""Ctrl-C before and behind a command's own work: an exit status and a line, and no traceback."""

import signal
import sys

import pytest
from shop import run_python

import dien_fast_command
from dien_fast import cli
from dien_fast.cli import main

# Sends its own process Ctrl-C when a module is looked for.
PROGRAM = """
import os, signal, sys
wanted = sys.argv[1]

class Interrupts:
    def find_spec(self, name, *_):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background takes away
sys.meta_path.insert(0, Interrupts())
import dien_fast_command
sys.argv = ["dien-fast", "info"]
sys.exit(dien_fast_command.main())
"""


@pytest.mark.parametrize(
    "module", ["dien_fast", "torch.nn", pytest.param("dien_fast.cli.train", marks=pytest.mark.slow)]
)
def test_while_modules_are_imported(module):
    done = run_python("-c", PROGRAM, module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ndien-fast: interrupted\n")


def test_while_the_words_are_read(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "\ndien-fast: interrupted\n"


# Within a command, a process sends itself a signal in a destructor, or while an extension converts an argument.
SWALLOWED = """
import argparse, os, signal, sys, time
import numpy as np
from matplotlib.transforms import affine_transform
from dien_fast import cli
from dien_fast.cli.signals import sigterm_as_interrupt

def send(*arguments, **options):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(0.1)

class Dying:
    __del__ = send

class Points:
    __array__ = send

def command(arguments):
    with sigterm_as_interrupt():
        if sys.argv[2] == "destructor":
            Dying()
        else:
            affine_transform(Points(), np.eye(3))
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli._parse = lambda words: argparse.Namespace(command=command)
sys.exit(cli.main())
"""


@pytest.mark.parametrize("place", ["destructor", "argument"])
@pytest.mark.parametrize(
    ("name", "status", "line"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_where_exceptions_get_lost(name, status, line, place):
    done = run_python("-c", SWALLOWED, name, place)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"\ndien-fast: {line}\n")


BEHIND = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
import dien_fast_command
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["dien-fast", "info"]
sys.exit(dien_fast_command.main())
"""


@pytest.mark.slow
def test_behind_the_command():
    done = run_python("-c", BEHIND, "default_int_handler")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout


@pytest.mark.slow
def test_a_program_in_the_background_hears_no_ctrl_c():
    done = run_python("-c", BEHIND, "SIG_IGN")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_the_command(monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["dien-fast", "info"])
    try:
        assert dien_fast_command.main() == main(["info"]) == 0
    finally:
        signal.signal(signal.SIGINT, handler)
    one, other = capsys.readouterr().out.split("dien-fast ")[1:]
    assert one == other


def test_an_error_without_a_signal_stays_an_error(monkeypatch):
    def fails():
        raise TypeError("no signal")

    monkeypatch.setattr(cli, "build_parser", fails)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TypeError, match="no signal"):
        main(["info"])
    assert signal.getsignal(signal.SIGINT) is handler
