"""Packages: the model's numbers from Python and from a C++ program, what a package says, and what is refused."""

import json
import os
import re
import shutil
import zipfile

import pandas as pd
import pytest
import torch
from served import cpp_example
from shop import failure, make_shop, shop_table

from dien_fast import backend
from dien_fast.cli import main
from dien_fast.errors import DienFastError
from dien_fast.ops.backend import LIBRARY
from dien_fast.serving import Package
from dien_fast.serving.programs import example
from dien_fast.training.runs import load

# Compiling a model takes a minute.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
    ),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A directory with a run and the package that the command makes of it."""
    directory = make_shop(tmp_path_factory.mktemp("shop"))
    words = ["export", str(directory / "run"), "--output", str(directory / "model.pt2")]
    assert main([*words, "--candidate-features", "price,item,brand"]) == 0
    return directory


def test_a_package_carries_what_it_needs(shop, capsys):
    assert main(["check", str(shop / "model.pt2")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["rows", "candidates"]
    assert lines[2].startswith(f"{shop / 'model.pt2'}: dien, exported by dien-fast ")
    package, run = Package(shop / "model.pt2"), load(shop / "run")
    assert package.description["fingerprint"] == run.encoders.fingerprint()
    assert package.description["schema"] == run.schema.to_dict()
    assert package.encoders()["item"] == run.encoders["item"].to_dict()


@pytest.mark.parametrize("users", [1, 2, 30])
@pytest.mark.parametrize("program", ["rows", "candidates"])
def test_every_size_runs(shop, program, users):
    package, run = Package(shop / "model.pt2"), load(shop / "run")
    inputs = package.inputs(program)
    arguments = example(inputs, seed=5, users=users)
    from dien_fast.serving.programs import programs_of
    from dien_fast.training.runs import without_negatives

    programs = programs_of(run.model, without_negatives(run.schema), run.encoders, ["price", "item", "brand"])
    (wanted,) = (found for found in programs if found.entry == program)
    assert tuple(inputs) == wanted.inputs
    torch.testing.assert_close(package.run(program, arguments), wanted(*arguments), rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused(shop):
    package = Package(shop / "model.pt2")
    inputs = package.inputs("candidates")
    names = [item.name for item in inputs]
    good = list(example(inputs))

    def changed(name, value):
        return [value if other == name else tensor for other, tensor in zip(names, good, strict=True)]

    with pytest.raises(DienFastError, match=r"item must be int64 with one dimension, got torch\.int32"):
        package.run("candidates", changed("item", good[names.index("item")].int()))
    with pytest.raises(DienFastError, match="candidates takes 10 arguments, got 9"):
        package.run("candidates", good[1:])
    with pytest.raises(DienFastError, match="program must be one of rows, candidates, got 'user'"):
        package.run("user", good)
    with pytest.raises(DienFastError, match="item must have 8 elements, to go with price, got 9"):
        package.run("candidates", [value[:-1] if value is good[names.index("price")] else value for value in good])
    with pytest.raises(
        DienFastError, match=r"past_items\.offsets must have 4 elements, to go with country, got 3"
    ):
        package.run("candidates", changed("past_items.offsets", good[names.index("past_items.offsets")][:-1]))
    for name in ("past_items.offsets", "candidates.offsets"):
        with pytest.raises(RuntimeError, match="offsets must rise from 0 to"):
            package.run("candidates", changed(name, good[names.index(name)] + 1))
    with pytest.raises(RuntimeError):
        package.run("candidates", changed("item", torch.full_like(good[names.index("item")], 1000)))


def changed_copy(path, copy, document, change):
    """Copy a package with one of its documents changed."""
    with zipfile.ZipFile(path) as package, zipfile.ZipFile(copy, "w") as other:
        for name in package.namelist():
            content = package.read(name)
            if name.endswith(document):
                content = json.dumps(change(json.loads(content))).encode()
            other.writestr(name, content)


def test_files_that_are_no_packages(shop, tmp_path, capsys):
    assert "none.pt2 cannot be read: No such file" in failure(capsys, "check", tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    assert "is not a package of dien-fast, or is damaged" in failure(capsys, "check", tmp_path / "text.pt2")
    shutil.copy(shop / "model.pt2", tmp_path / "cut.pt2")
    with (tmp_path / "cut.pt2").open("rb+") as file:
        file.truncate(1000)
    assert "is not a package of dien-fast, or is damaged" in failure(capsys, "check", tmp_path / "cut.pt2")
    content = bytearray((shop / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    assert "is not a package of dien-fast, or is damaged" in failure(capsys, "check", tmp_path / "flipped.pt2")
    changed_copy(
        shop / "model.pt2", tmp_path / "new.pt2", "dien_fast.json", lambda content: content | {"format": 99}
    )
    assert "has format 99, this version of dien-fast reads 1" in failure(capsys, "check", tmp_path / "new.pt2")


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """The C++ program, built."""
    return cpp_example(tmp_path_factory.mktemp("build"))


def assert_scores(done, probabilities):
    assert done.returncode == 0, done.stderr
    scores = [float(line) for line in done.stdout.splitlines()]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(probabilities), rtol=0, atol=1e-6)


def test_a_program_without_python_scores_rows(shop, serve, tmp_path):
    shop_table(60, seed=3).to_pandas().to_csv(tmp_path / "rows.csv", index=False)
    done = serve(shop / "model.pt2", LIBRARY, tmp_path / "rows.csv")
    assert_scores(done, load(shop / "run").predict(tmp_path / "rows.csv"))


def test_a_program_without_python_scores_candidates(shop, serve, tmp_path):
    users = shop_table(5, seed=4).to_pandas().drop(columns=["item", "brand", "price"])
    items = {"item": ["i1;i2;i9", "i4", "", "i5;i5", "never"], "brand": ["b1;b2;b0", "b1", "", "b2;b2", "b9"]}
    items["price"] = ["0.1;0.5;0.9", "0.2", "", "0.3;0.4", "0.7"]
    users.assign(**items).to_csv(tmp_path / "users.csv", index=False)
    done = serve(shop / "model.pt2", LIBRARY, tmp_path / "users.csv", "candidates")
    lists = {name: [cell.split(";") if cell else [] for cell in cells] for name, cells in items.items()}
    lists["price"] = [[float(number) for number in cell] for cell in lists["price"]]
    assert_scores(done, load(shop / "run").score_candidates(users, pd.DataFrame(lists)))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads_of_a_program_get_the_same_bits(shop, serve, tmp_path, threads):
    shop_table(60, seed=3).to_pandas().to_csv(tmp_path / "rows.csv", index=False)
    words = (shop / "model.pt2", LIBRARY, tmp_path / "rows.csv", "rows", "--repeat", 20)
    done = serve(*words, "--threads", threads)  # it compares the bits of all its scores
    assert_scores(done, load(shop / "run").predict(tmp_path / "rows.csv"))
    assert done.stdout == serve(*words).stdout
    times = re.fullmatch(
        r"load and first score: (\S+) s\np50 of (\d+) scores on (\d) threads: \S+ ms\n", done.stderr
    )
    assert times is not None, done.stderr
    assert (float(times[1]) < 2, int(times[2]), int(times[3])) == (True, 20 * threads, threads)


def test_a_program_refuses_wrong_sizes_and_ids(shop, serve, tmp_path):
    users = shop_table(1, seed=4).to_pandas().drop(columns=["item", "brand", "price"])
    users.assign(item="i1;i2", brand="b1", price="0.5;0.1").to_csv(tmp_path / "users.csv", index=False)
    done = serve(shop / "model.pt2", LIBRARY, tmp_path / "users.csv", "candidates", "--threads", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "serve: error: brand must have 2 elements, to go with price, got 1\n"

    def with_another_word(content):
        content["item"]["word_by_id"].append("new")
        return content

    users.assign(item="new", brand="b1", price="0.5").to_csv(tmp_path / "users.csv", index=False)
    changed_copy(shop / "model.pt2", tmp_path / "new.pt2", "encoders.json", with_another_word)
    done = serve(tmp_path / "new.pt2", LIBRARY, tmp_path / "users.csv", "candidates")
    assert (done.returncode, done.stdout) == (2, "")
    assert "serve: error: index out of bounds" in done.stderr


def test_the_program_says_what_is_wrong(shop, serve, tmp_path):
    (tmp_path / "rows.csv").write_text("item,brand\ni1,b1\n")
    done = serve(shop / "model.pt2", LIBRARY, tmp_path / "rows.csv")
    assert (done.returncode, done.stderr) == (2, "serve: error: the table must have a column price\n")
    assert serve(shop / "model.pt2").returncode == 2
    assert backend().name == "native"
