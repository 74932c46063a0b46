"""Any words behind ``dien-fast``: it does its work, or says in one sentence which option is wrong."""

import argparse
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from campaign import Tally, amounts, campaign, command
from hypothesis import example, given
from hypothesis import strategies as st

from dien_fast.cli import build_parser
from dien_fast.errors import DataError

# Small numbers are left to the options' own good values: they would train for long, or start processes.
NUMBERS = [
    "-1",
    "0",
    "0.5",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e-320",
    "1_0",
    "0x10",
    "",
    " ",
    "+1",
    "ten",
    "٣",
]
NUMBERS += [str(2**31), str(2**63), str(2**64), "9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 30]
NUMBERS += ["1,2", "0,0", ",", "1;2"]
# Nothing here leads out of the folder that a case works in, or to another host.
TEXTS = ["", " ", "-", "--", "-x", "--help=1", ".", "/dev/null", "/dev/null/x", "no/such/file", "x" * 300]
TEXTS += ["ü", "\udcff", "a\nb", "*", "[", "http://[", "file:///nowhere", "lr=1", "lr=", "=1", "lr=1:0"]
TEXTS += [
    "lr=nan:1",
    "lr=1e-3:1e-2",
    "epochs=1:2",
    "dien",
    "din,din",
    "nobody",
    "csv.csv",
    "{",
    "%s",
    "$HOME",
    "a=b=c",
]
MODELS = ["dien", "din", "dsin", "DIEN", ""]
# Options whose own values are given too, so that some command lines are accepted.
GOOD = {
    "--batch-size": ["2", "64"],
    "--embedding-size": ["1", "3"],
    "--attention-hidden": ["1", "3,2"],
    "--mlp-hidden": ["1", "3,2"],
    "--model": MODELS,
    "--models": ["din", "dien,din"],
    "--split": ["random", "user"],
    "--seed": ["3"],
    "--k": ["1", "1000"],
    "--column": ["p", "price", "ü"],
    "--row": ["0", "399", "400"],
    "--candidates": ["i1,i2", '"i1', '""', ","],
    "--host": ["127.0.0.1", "::1", "localhost"],
    "--port": ["0"],
    "--task": ["next", "label"],
    "--min-count": ["1", "1000"],
    "--max-length": ["1"],
    "--negatives": ["none", "popularity", "columns"],
    "--epochs": ["1"],
    "--lr": ["0", "1e9", "0.01"],
    "--track": ["tensorboard"],
    "--tables": ["torchrec", "local"],
    "--table-optimizer": ["sparse-adam", "sgd"],
    "--mixed-precision": ["bf16", "fp16"],
    "--checkpoint-every": ["1steps", "10min", "0s", "-1s", "1e30h"],
    "--process-timeout": ["1s", "0s", "9" * 30 + "h"],
}
# They would start processes, wait, or compile for minutes.
LEFT_OUT = {"--workers", "--jobs", "--trials", "--seeds", "--patience", "--help", "--version"}


def parsers():
    """The parser of each command by name."""
    (action,) = [found for found in build_parser()._actions if isinstance(found, argparse._SubParsersAction)]
    return action.choices


@pytest.fixture(scope="module")
def place(shop, tmp_path_factory):
    """A folder to work in, with the shop's files and a file that an export might have written."""
    directory = tmp_path_factory.mktemp("commands")
    patch = pytest.MonkeyPatch()
    patch.setenv("DIEN_FAST_CACHE", str(directory / "cache"))
    (directory / "model.onnx").write_bytes(b"\x08\x08")
    (directory / "model.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    before = Path.cwd()
    os.chdir(directory)
    yield directory
    os.chdir(before)
    patch.undo()


def bases(shop):
    """For each command the words with which it works."""
    table, schema, run = (str(shop / name) for name in ("clicks.csv", "clicks.toml", "run"))
    small = ["--epochs", "1", "--embedding-size", "2", "--cpu", "--quiet"]
    own = ["--dataset", table, "--schema", schema]
    return {
        "train": [
            ["train", *own, "--output", "out", *small],
            ["train", "--dataset", "synthetic", "--rows", "99", "--output", "out", *small],
        ],
        "prepare": [["prepare", *own, "--output", "out", "--quiet"]],
        "evaluate": [["evaluate", run, table, "--quiet"], ["evaluate", run, "--quiet"]],
        "predict": [["predict", run, table, "--output", "out.csv", "--quiet"]],
        "info": [["info", run], ["info"], ["info", run, "--attention", "out"]],
        "serve": [["serve", run, "--port", "0"]],
        "check": [["check", "model.onnx"], ["check", "model.pt2"]],
        "export": [
            ["export", run, "--output", "out.txt"],
            ["export", run, "--format", "onnx", "--output", "x.pt2"],
        ],
        "compare": [["compare", "--models", "din", "--seeds", "0", "--output", "out", *own, *small]],
        "tune": [["tune", "--trials", "0", "--output", "out", *own, *small]],
    }


@st.composite
def lines(draw, commands, known):
    """The words of a command line."""
    name = draw(st.sampled_from(sorted(commands)))
    words = list(draw(st.sampled_from(commands[name])))
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(["option"] * 5 + ["replace", "drop", "insert"]))
        place = draw(st.integers(1, max(len(words), 1)))
        if change == "option":
            option = draw(st.sampled_from(known[name]))
            value = draw(st.sampled_from([*NUMBERS, *TEXTS, *(2 * GOOD.get(option, []))]))
            words += draw(st.sampled_from([[f"{option}={value}"], [option, value], [option]]))
        elif change == "replace" and place < len(words) and not words[place].startswith("-"):
            words[place] = draw(st.sampled_from(TEXTS))
        elif change == "drop" and words:
            del words[place - 1]
        else:
            words.insert(place, draw(st.sampled_from([*TEXTS, "--no-such-option", "--quiet", "--ep", "9"])))
    return words


@amounts(quick=12, slow=2000)
def test_any_command_line_works_or_is_refused(count, shop, place):
    commands, tally = bases(shop), Tally("command lines")
    known = {
        name: sorted({word for action in parser._actions for word in action.option_strings} - LEFT_OUT)
        for name, parser in parsers().items()
    }
    known["compare"] = known["tune"] = sorted({*known["compare"], *known["tune"], *known["train"]} - {"--for"})
    kept = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    threads = torch.get_num_threads()

    @campaign(count)
    @given(lines(commands, known))
    @example([])
    @example(["serve", str(shop / "run"), "--port", "70000"])
    @example(["serve", str(shop / "run"), "--host", "a" * 300])
    @example(["serve", str(shop / "run"), "--threads", "9" * 30])
    @example(["export", str(shop / "run"), "--output", "x.pt2", "--format", "--"])
    @example(["predict", str(shop / "run"), "--allow-unknown=" + "9" * 5000])
    @example([*commands["train"][0], "--seed", "9" * 30])
    @example([*commands["train"][0], "--embedding-size", "9" * 30])
    @example(["predict", str(shop / "run"), "\udcff.csv", "--output", "out.csv"])
    def check(words):
        offline = mock.patch(
            "dien_fast.data.movielens._download", side_effect=DataError("this test has no network")
        )
        with offline, mock.patch("uvicorn.Server.run") as served:
            status, _, sentence = command(*words, stdin=b"a,b\n1,2\n")
        tally["right" if status == 0 else "refused"] += 1
        if words[:1] == ["serve"] and "-h" not in words:
            assert served.called == (status == 0), sentence
        assert {path: path.read_bytes() for path in kept} == kept
        torch.set_num_threads(threads)
        for path in place.iterdir():
            if path.name not in ("model.onnx", "model.pt2"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    check()
    tally.check(least_right=0.02)
