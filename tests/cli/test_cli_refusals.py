"""Bad input to the command: one sentence, status 2, nothing half-written."""

import shutil
import sys

import pandas as pd
import pytest
import torch
from faults import finished
from full_disk import files_of_at_most
from shop import failure, make_shop, run_python, shop_table

from dien_fast.cli import main
from dien_fast.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run_copy(shop, tmp_path):
    return shutil.copytree(shop / "run", tmp_path / "run")


def spoil(shop, tmp_path, **columns):
    """Write the shop's table with some columns replaced (or, for None, dropped) and return its path."""
    table = pd.read_csv(shop / "clicks.csv", keep_default_na=False)
    for name, values in columns.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    table.to_csv(tmp_path / "bad.csv", index=False)
    return tmp_path / "bad.csv"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": None}, "no column 'item'"),
        ({"clicked": None}, "no column 'clicked'"),
        ({"clicked": 3}, "got 3 in row 0"),
        ({"past_items": 7.5}, "past_items"),
        ({"past_items": "i1;i2"}, "should describe the same events"),
        ({"past_items": "__PAD__;i1"}, "without padding"),
        ({"price": "cheap"}, "price"),
    ],
)
def test_bad_tables_are_refused_before_a_directory_is_made(shop, tmp_path, capsys, columns, message):
    table = spoil(shop, tmp_path, **columns)
    arguments = ["--dataset", table, "--schema", shop / "clicks.toml", "--output", tmp_path / "run"]
    sentence = failure(capsys, "train", *arguments, "--quiet", "--cpu")
    assert message in sentence
    assert str(table) in sentence
    assert not (tmp_path / "run").exists()


def test_bad_files_and_schemas_are_named(shop, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "empty.csv").write_text(",".join(shop_table(1).column_names) + "\n")
    (tmp_path / "bad.toml").write_text('categorical = ["item"\n')
    (tmp_path / "unknown.toml").write_text('categoricals = ["item"]\n')
    train = ["train", "--output", tmp_path / "run", "--cpu", "--quiet", "--dataset"]
    table, schema = shop / "clicks.csv", shop / "clicks.toml"
    assert "no such file" in failure(capsys, *train, tmp_path / "none.csv", "--schema", schema)
    assert "t.csv: cannot read the table" in failure(capsys, *train, tmp_path / "t.csv", "--schema", schema)
    assert "empty.csv" in failure(capsys, *train, tmp_path / "empty.csv", "--schema", schema)
    assert "not valid TOML" in failure(capsys, *train, table, "--schema", tmp_path / "bad.toml")
    assert "did you mean 'categorical'" in failure(capsys, *train, table, "--schema", tmp_path / "unknown.toml")
    assert "needs a schema file" in failure(capsys, *train, table)
    assert "lr must be a finite number of at least 0" in failure(capsys, *train, "synthetic", "--lr", "-1")
    (tmp_path / "file").write_text("")
    sentence = failure(capsys, "train", "--dataset", "synthetic", "--rows", "200", "--output", tmp_path / "file")
    assert sentence.endswith("is a file; the run needs a directory")
    assert not (tmp_path / "run").exists()


def test_predict_refuses_before_it_writes(shop, tmp_path, capsys):
    new = shop / "new.parquet"
    predict = ["predict", shop / "run"]
    assert failure(capsys, *predict, new, "--output", tmp_path / "p.txt").endswith(
        "p.txt must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet"
    )
    assert "does not exist" in failure(capsys, *predict, new, "--output", tmp_path / "no" / "p.csv")
    assert "no such file" in failure(capsys, *predict, tmp_path / "none.csv", "--output", tmp_path / "p.csv")
    column = ["--output", tmp_path / "p.csv", "--column", "price"]
    assert "has a column 'price' already" in failure(capsys, *predict, new, *column)
    table = spoil(shop, tmp_path, past_items=None)
    assert f"{table}: no column 'past_items'" in failure(capsys, *predict, table, "--output", tmp_path / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_tables_that_the_model_cannot_read_are_not_scored(shop, tmp_path, capsys, command):
    output = tmp_path / "p.csv"
    table = pd.read_csv(shop / "clicks.csv", keep_default_na=False)
    histories = {name: table[name].str.replace(";", ",") for name in ("past_items", "past_brands")}
    cases = [
        ({"item": table["item"].str[1:]}, "column 'item': 100.0 % of 400 words are unknown"),
        (histories, "',' divides them, not ';', for example in "),
        ({"past_items": "[]", "past_brands": "[]"}, "got lists written as text"),
    ]
    for columns, message in cases:
        arguments = [command, shop / "run", spoil(shop, tmp_path, **columns), "--quiet"]
        arguments += ["--output", output] if command == "predict" else []
        sentence = failure(capsys, *arguments)
        assert message in sentence
        assert str(tmp_path / "bad.csv") in sentence
        assert not output.exists()
        if columns.get("past_items") is not None and isinstance(columns["past_items"], str):
            continue
        assert main([*map(str, arguments), "--allow-unknown"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert sum("words are unknown" in line for line in lines) == 6
        assert all("words are unknown" in line or line.startswith("warning: ") for line in lines)
        assert lines[0].startswith("country: 0.0 % of 400 words are unknown (")
        output.unlink(missing_ok=True)


def test_an_error_of_the_system_is_one_sentence_too(shop, tmp_path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "p.csv"))

    monkeypatch.setattr("dien_fast.data.tables.write_table", full)
    sentence = failure(
        capsys, "predict", shop / "run", shop / "new.parquet", "--output", tmp_path / "p.csv", "--quiet"
    )
    assert sentence == f"{tmp_path / 'p.csv'}: No space left on device"


def test_a_full_disk_ends_a_training_with_one_sentence(run_copy, capsys):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    arguments = ["train", "--dataset", "synthetic", "--rows", "200", "--epochs", "1", "--cpu", "--quiet"]
    with files_of_at_most(10_000):
        assert main([*arguments, "--overwrite", "--output", str(run_copy)]) == 2
    place = run_copy / ".new" / "best.pt"
    assert capsys.readouterr().err == f"dien-fast: error: {place}: File too large\n"
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def _truncate(run):
    path = run / "best.pt"
    path.write_bytes(path.read_bytes()[:-2000])


def _foreign(run):
    torch.save({"epoch": 3}, run / "best.pt")


def _text(run):
    (run / "best.pt").write_text("not a checkpoint")


def _missing_weight(run):
    content = load_checkpoint(run / "best.pt")
    content["model"].pop(next(iter(content["model"])))
    save_checkpoint(run / "best.pt", content)


def _wrong_shape(run):
    content = load_checkpoint(run / "best.pt")
    key = next(iter(content["model"]))
    content["model"][key] = torch.zeros(2, 2)
    save_checkpoint(run / "best.pt", content)


def _other_encoders(run):
    content = load_checkpoint(run / "best.pt")
    save_checkpoint(run / "best.pt", content | {"fingerprint": "of other encoders"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "damaged, cut short"),
        (_foreign, "is not a checkpoint of dien-fast"),
        (_text, "damaged, cut short or not from dien-fast"),
        (_missing_weight, "does not fit the model: it lacks the weight"),
        (_wrong_shape, "must have shape"),
        (_other_encoders, "they were fitted to other data"),
    ],
)
def test_bad_checkpoints_end_the_command_with_one_sentence(shop, run_copy, tmp_path, capsys, damage, message):
    damage(run_copy)
    predict = ["predict", run_copy, shop / "new.parquet", "--output", tmp_path / "p.csv"]
    assert message in failure(capsys, *predict)
    assert not (tmp_path / "p.csv").exists()


def anew(words):
    done = run_python("-m", "dien_fast.cli", *words)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("started", [finished, pytest.param(anew, marks=pytest.mark.slow)])
def test_a_process_ends_with_one_sentence_and_status_2(shop, run_copy, tmp_path, started):
    """Nothing that torch or Python writes of its own accord stands beside the sentence."""
    _truncate(run_copy)
    status, printed = started(["predict", run_copy, shop / "new.parquet", "--output", tmp_path / "p.csv"])
    assert status == 2, printed
    assert printed.startswith("dien-fast: error: ")
    assert printed.count("\n") == 1


def test_a_missing_package_is_one_sentence_too(shop, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "dien_fast.training.pipeline")
    monkeypatch.setitem(sys.modules, "pandas", None)
    sentence = failure(capsys, "train", "--dataset", "synthetic", "--output", shop / "none")
    assert sentence == 'pandas is not installed: pip install "dien-fast[train]"'


def test_a_bad_last_checkpoint_is_not_resumed(run_copy, capsys):
    (run_copy / "last.pt").write_bytes((run_copy / "last.pt").read_bytes()[:3000])
    sentence = failure(capsys, "train", "--output", run_copy, "--resume", "--epochs", "3", "--cpu", "--quiet")
    assert "last.pt cannot be read as a checkpoint" in sentence
