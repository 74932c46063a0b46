"""With torch and numpy alone, as the wheel installs without the extra, names work or say what to install."""

import json
import re
import subprocess
import sys

import pytest

import dien_fast
import dien_fast.data
import dien_fast.training
from dien_fast.training.runs import RunConfig

CODE = """
import contextlib, importlib, io, json, sys
sys.modules |= dict.fromkeys(("accelerate", "matplotlib", "pandas", "pyarrow", "sklearn", "tqdm"))
import torch
import dien_fast.training
from dien_fast.cli import main

run = sys.argv[1]
found = {}

def attempt(what, function):
    try:
        function()
        found[what] = None
    except Exception as error:
        found[what] = f"{type(error).__name__}: {error}"

def command(*arguments):
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        status = main(arguments)
    if status:
        raise SystemError(f"{status}: {stream.getvalue()}")

for module in ("dien_fast", "dien_fast.data", "dien_fast.training"):
    module = importlib.import_module(module)
    for name in module.__all__:
        attempt(f"{module.__name__}.{name}", lambda: getattr(module, name))
attempt("Run.predict", lambda: dien_fast.load(run).predict("table.parquet"))
attempt("Run.score_candidates", lambda: dien_fast.load(run).score_candidates({}, {}))
attempt("fit", lambda: dien_fast.training.fit(torch.nn.Linear(1, 1), None, None))
attempt("dien-fast info", lambda: command("info"))
attempt("dien-fast train", lambda: command("train", "--dataset", "synthetic", "--output", f"{run}/new"))
attempt("dien-fast evaluate", lambda: command("evaluate", run))
attempt("dien-fast predict", lambda: command("predict", run, "table.parquet", "--output", f"{run}/scores.parquet"))
print(json.dumps(found))
"""
LAZY = {"dien_fast.CategoryEncoder", "dien_fast.SequenceEncoder"}
WORK = {f"dien_fast.{name}" for name in dien_fast.__all__} - LAZY
WORK |= {f"dien_fast.training.{name}" for name in dien_fast.training.__all__} | {"dien-fast info"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For each name, call and command: None if it works, else its error."""
    run = tmp_path_factory.mktemp("run")
    # As much of a run as is read before its encoders.
    RunConfig(schema={"label": "clicked"}).save(run / "config.json")
    done = subprocess.run([sys.executable, "-c", CODE, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_works(found):
    assert found.keys() >= WORK
    assert {what: found[what] for what in WORK if found[what]} == {}


def test_what_does_not_work_says_what_to_install(found):
    errors = {what: error for what, error in found.items() if error is not None}
    assert errors.keys() >= {"dien_fast.data.read_table", "Run.predict", "Run.score_candidates", "fit"} | LAZY
    install = r"""needs \w+(, which is not installed)?: pip install (['"])dien-fast\[train\]\2"""
    for what, error in errors.items():
        if not what.startswith("dien-fast "):
            assert re.fullmatch(rf"ImportError: \S+ {install}", error), f"{what}: {error}"


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_commands_that_do_not_work_say_what_to_install(found, command):
    install = r"""(needs \w+|is not installed): pip install (['"])dien-fast\[train\]\2"""
    said = found[f"dien-fast {command}"]
    assert re.fullmatch(rf"SystemError: 2: dien-fast: .*{install}\n", said), said
