"""Models of every kind to export or serve, what a program takes for the rows of a table, and what serves it."""

import dataclasses
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from faults import Command
from shop import REPOSITORY

from dien_fast.data import Schema
from dien_fast.serving.programs import example, programs_of
from dien_fast.training.candidates import encode_request
from dien_fast.training.config import RunConfig
from dien_fast.training.runs import build_model, schema_for, without_negatives

# Of each model its name, its options, and the operators of its program of rows.
KINDS = {
    "DIEN AUGRU": ("dien", {"gru_type": "AUGRU"}, ["attention_gru", "attention_gru", "attention_scores"]),
    "DIEN AGRU": ("dien", {"gru_type": "AGRU"}, ["attention_gru", "attention_gru", "attention_scores"]),
    "DIEN AIGRU": ("dien", {"gru_type": "AIGRU"}, ["attention_gru", "attention_gru", "attention_scores"]),
    "DIEN GRU": (
        "dien",
        {"gru_type": "GRU"},
        ["attention_gru", "attention_gru", "attention_scores", "weighted_sum"],
    ),
    "DIN": ("din", {}, ["attention_scores", "weighted_sum"]),
    "DSIN": ("dsin", {"heads": 2}, None),
}


def run_of(run, kind):
    """A run of a model with random weights over the shop's features."""
    model, options, _ = KINDS[kind]
    content = run.schema.to_dict()
    content["groups"] = [group | {"time": "moments", "session_gap": 60.0} for group in content["groups"]]
    schema = without_negatives(schema_for(model, Schema.from_dict(content)))
    config = RunConfig(schema=schema.to_dict(), model=model, options=options, embedding_size=4)
    torch.manual_seed(0)
    model = build_model(config, run.encoders).eval()
    return dataclasses.replace(run, config=config, schema=schema, model=model)


def program_of(run, kind, entry):
    """A program of such a model."""
    run = run_of(run, kind)
    programs = programs_of(run.model, run.schema, run.encoders)
    return next(program for program in programs if program.entry == entry)


def all_empty(inputs):
    """Arguments of two users without a history."""
    arguments = []
    for item, value in zip(inputs, example(inputs, users=2), strict=True):
        empty = item.size.startswith("events")
        without = item.name.endswith(".offsets") and item.name != "candidates.offsets"
        arguments.append(value[:0] if empty else torch.zeros_like(value) if without else value)
    return tuple(arguments)


def arguments_of(inputs, run, users, items, offsets=None):
    """What a program takes to score candidates of users, who are given as for ``Run.score_candidates``."""
    request = encode_request(run, users, items, offsets)
    features = request.user | request.candidates
    arguments = []
    for item in inputs:
        name = item.name.removesuffix(".offsets")
        if item.name == "candidates.offsets":
            arguments.append(request.offsets)
        elif item.name.endswith(".offsets"):
            arguments.append(features[name].offsets)
        else:
            value = features[item.name]
            arguments.append(value if isinstance(value, torch.Tensor) else value.values)
    return arguments


def hard_table(rows, seed=0, longest=300):
    """Clicks of the shop with empty, short and long histories, and with words that training did not see."""
    rng = np.random.default_rng(seed)

    def words(kind, count):
        return [f"{kind}{number}" for number in rng.integers(0, 15, count)]

    lengths = np.where(
        rng.random(rows) < 0.2, 0, np.where(rng.random(rows) < 0.1, longest, rng.integers(0, 9, rows))
    )
    table = {
        "price": pa.array(np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)), from_pandas=True),
        "country": rng.choice(["NO", "IS", "XX"], rows),
        "words": rng.choice(["new;red;old", "blue", ""], rows),
        "item": words("i", rows),
        "brand": words("b", rows),
        "past_items": [";".join(words("i", length)) for length in lengths],
        "past_brands": [";".join(words("b", length)) for length in lengths],
        "moments": [";".join(map(str, np.sort(rng.integers(0, 9999, length)))) for length in lengths],
    }
    return pa.table(table)


class Server:
    """A server in a process of its own.

    Args:
        run: what it serves.
        options: more words of the command.
        before: as :class:`faults.Command` takes it.
    """

    def __init__(self, run, *options, before=None):
        self.command = Command(["serve", run, "--port", "0", *options], before)
        until = time.monotonic() + 60
        while (said := re.search(r"port (\d+)\n", self.command.printed())) is None:
            assert self.command.process.is_alive(), self.command.printed()
            assert time.monotonic() < until, self.command.printed()
            time.sleep(0.01)
        self.port = int(said[1])

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def score(self, content):
        status, text = self.ask("POST", "/score", json.dumps(content))
        return status, json.loads(text)

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("GET", "/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self):
        """End it by SIGTERM; return its exit status and what it has printed since it was ready."""
        self.command.send(signal.SIGTERM)
        return self.command.wait(), self.command.printed().partition("\n")[2]


def cpp_example(build):
    """Build the C++ program in a directory; return a function that runs it."""
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    # Importing this package of headers would need another package.
    (headers,) = importlib.util.find_spec("nlohmann_json").submodule_search_locations
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", f"-DJSON_INCLUDE={headers}/include"]
    source = REPOSITORY / "examples" / "serve_cpp"
    for command in (["cmake", "-S", source, "-B", build, "-GNinja", *options], ["cmake", "--build", build]):
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(*arguments):
        words = [build / "serve", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    return run
