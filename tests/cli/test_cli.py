"""The command as a user runs it: own data in, a run directory out, and what is done with one."""

import io
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from shop import failure, make_shop

from dien_fast import cli, progress
from dien_fast.cli import main
from dien_fast.cli.options import with_default
from dien_fast.data.sources import Source
from dien_fast.settings import rules
from dien_fast.training import pipeline
from dien_fast.training.config import RunConfig
from dien_fast.training.directory import RunDirectory
from dien_fast.training.settings import TrainSettings


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run_copy(shop, tmp_path):
    return shutil.copytree(shop / "run", tmp_path / "run")


# training


def test_training_on_own_data_reports_and_ends_with_the_test_auc(tmp_path, shop, capsys):
    table = shop / "clicks.csv"
    arguments = ["train", "--dataset", str(table), "--schema", str(shop / "clicks.toml"), "--cpu"]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--epochs", "1", "--split", "global"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"data: {table}, 320 training, 40 validation and 40 test rows"
    assert lines[1] == "split: global, all rows in the order of 'when', as asked for"
    about_words = [line for line in lines if line.startswith("words of ")]
    assert about_words[1].startswith(
        "words of item: 12 of 12 kept, seen 2 times or more; unknown: 0.0 % in training, "
    )
    assert len(about_words) == 6
    assert lines[8].startswith("warning: in ")
    assert " item is one of its own past_items: " in lines[8]
    assert lines[9].startswith("model: DIEN (AUGRU, negatives: uniform), ")
    assert lines[10].startswith("epoch 1: train loss ")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert lines[-1] == f"test AUC: {metrics['test_auc']:.4f}"
    # So short a training has no news for a log file.
    assert captured.err == ""


def test_reading_and_encoding_show_how_far_they_are(tmp_path, shop, capsys, monkeypatch):
    monkeypatch.setattr(progress._Lines, "seconds", 0.0)
    arguments = ["train", "--dataset", str(shop / "clicks.csv"), "--schema", str(shop / "clicks.toml"), "--cpu"]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--epochs", "1"]) == 0
    lines = [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["reading: 1 of 3 steps", "reading: 2 of 3 steps"]
    encoding = [line for line in lines if line.startswith("encoding")]
    # Seven columns learnt, then encoded three times, and one group's negatives; the last step ends it.
    assert encoding == [f"encoding: {number} of 29 steps" for number in range(1, 29)]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_scoring_shows_how_far_it_is(tmp_path, shop, capsys, monkeypatch, command):
    monkeypatch.setattr(progress._Lines, "seconds", 0.0)
    output = ["--output", str(tmp_path / "p.csv")] if command == "predict" else []
    assert main([command, str(shop / "run"), str(shop / "new.parquet"), *output]) == 0
    lines = [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    # The last step needs no line, and 50 rows are one batch.
    assert [line for line in lines if "steps" in line] == [
        f"encoding: {number} of 7 steps" for number in range(1, 7)
    ]


def test_flags_reach_the_run(tmp_path, capsys):
    arguments = "train --dataset synthetic --rows 200 --model din --embedding-size 3 --epochs 1"
    arguments += " --attention-hidden 5,4 --mlp-hidden 6 --separate-embeddings --min-count 2 --max-length 7"
    arguments += " --exclude-clicked --workers 1 --negatives popularity --batch-size 32 --lr 0.01 --seed 4"
    arguments += " --quiet --cpu --output"
    assert main([*arguments.split(), str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = {"model": "din", "options": {}, "embedding_size": 3, "attention_hidden": [5, 4], "lr": 0.01}
    expected |= {"mlp_hidden": [6], "seed": 4, "batch_size": 32, "weight_decay": 1e-4}
    assert {name: config[name] for name in expected} == expected
    schema = config["schema"]
    assert (schema["share_vocabulary"], schema["min_count"], schema["max_length"]) == (False, 2, 7)
    # DIN has no auxiliary loss, whatever negatives it is offered.
    assert (schema["exclude_clicked"], schema["negatives"]) == (True, "none")


def test_options_of_one_model_are_refused_for_another(tmp_path, capsys):
    parse = cli.build_parser().parse_args
    assert cli.train.settings(parse(["train", "--gru-type", "AGRU"]), tmp_path)[1].options == {"gru_type": "AGRU"}
    assert cli.train.settings(parse(["train"]), tmp_path)[1].options == {"gru_type": "AUGRU"}
    arguments = ["train", "--model", "din", "--gru-type", "AGRU", "--output", tmp_path / "run"]
    assert failure(capsys, *arguments) == "--gru-type is an option of dien, not of din"


def test_a_resumed_run_keeps_the_options_of_its_model(run_copy):
    config = RunConfig.load(run_copy / "config.json")
    replace(config, options={"gru_type": "AIGRU"}).save(run_copy / "config.json")
    arguments = cli.build_parser().parse_args(["train", "--output", str(run_copy), "--resume"])
    assert cli.train.settings(arguments, run_copy)[1].options == {"gru_type": "AIGRU"}


def test_the_output_directory_is_named_after_the_dataset():
    parse = cli.build_parser().parse_args
    assert cli.train.output_directory(parse(["train"])) == Path("runs/ml-100k")
    assert cli.train.output_directory(parse(["train", "--dataset", "/data/clicks.csv.gz"])) == Path("runs/clicks")


def test_weight_decay_has_one_default_whatever_the_data(tmp_path):
    def weight_decay(*arguments):
        parsed = cli.build_parser().parse_args(["train", *arguments])
        return cli.train.settings(parsed, tmp_path)[1].weight_decay

    default = TrainSettings().weight_decay
    assert weight_decay() == default
    assert weight_decay("--dataset", "synthetic") == default
    assert weight_decay("--dataset", "clicks.csv", "--schema", "clicks.toml") == default
    assert weight_decay("--dataset", "synthetic", "--weight-decay", "0.1") == 0.1


def test_a_finished_run_is_reported_again_with_resume_and_kept_otherwise(run_copy, capsys):
    before = {path.name: path.read_bytes() for path in run_copy.glob("*.pt")}
    metrics = json.loads((run_copy / "metrics.json").read_text())
    assert main(["train", "--output", str(run_copy), "--resume", "--quiet", "--cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"resuming {run_copy}" in lines
    assert not any(line.startswith("epoch ") for line in lines)
    assert lines[-1] == f"test AUC: {metrics['test_auc']:.4f}"
    assert json.loads((run_copy / "metrics.json").read_text()) == metrics
    config = json.loads((run_copy / "config.json").read_text())
    source = ["--dataset", config["data"]["dataset"], "--schema", config["data"]["schema"]]
    sentence = failure(capsys, "train", *source, "--output", run_copy, "--cpu", "--quiet")
    assert sentence.endswith("go on with --resume, replace it with --overwrite, or choose another --output")
    sentence = failure(capsys, "train", "--output", run_copy, "--resume", "--lr", "0.5", "--cpu", "--quiet")
    assert sentence == f"{run_copy} cannot be resumed: it was trained with lr = 0.002, now lr = 0.5"
    assert {path.name: path.read_bytes() for path in run_copy.glob("*.pt")} == before


def test_more_epochs_may_be_added_and_a_run_overwritten(run_copy, capsys):
    arguments = ["train", "--output", str(run_copy), "--cpu", "--quiet"]
    assert main([*arguments, "--resume", "--epochs", "3"]) == 0
    assert pd.read_csv(run_copy / "history.csv")["epoch"].tolist() == [1, 2, 3]
    arguments += ["--dataset", "synthetic", "--rows", "200", "--epochs", "1", "--embedding-size", "4"]
    assert main([*arguments, "--overwrite"]) == 0
    assert pd.read_csv(run_copy / "history.csv")["epoch"].tolist() == [1]
    assert [path.name for path in (run_copy / "encoders").iterdir()].count("brand.json") == 0


def test_a_run_that_was_killed_while_taking_its_place_is_resumed(run_copy, tmp_path, capsys):
    names = [path.relative_to(run_copy).as_posix() for path in run_copy.rglob("*") if path.is_file()]
    killed = tmp_path / "killed"
    shutil.copytree(run_copy, killed / ".ready")
    (killed / ".ready" / "names.json").write_text(json.dumps([name for name in names if name != ".lock"]))
    assert main(["train", "--output", str(killed), "--resume", "--quiet", "--cpu"]) == 0
    assert f"resuming {killed}" in capsys.readouterr().out.splitlines()


def test_resume_needs_a_checkpoint_and_touches_nothing_without(run_copy, tmp_path, capsys):
    resume = ["--resume", "--cpu", "--quiet"]
    sentence = failure(capsys, "train", "--dataset", "synthetic", "--output", tmp_path / "none", *resume)
    assert sentence == f"{tmp_path / 'none'} holds no run to resume; train without --resume to start one"
    (run_copy / "last.pt").unlink()
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    sentence = failure(capsys, "train", "--output", run_copy, *resume)
    assert sentence == (
        f"{run_copy} holds a run without last.pt, so it cannot be resumed; start anew with --overwrite, "
        "or choose another --output"
    )
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_a_second_training_into_a_directory_is_refused_and_readers_are_not(run_copy, capsys):
    with RunDirectory(run_copy) as first:
        first.begin()
        before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
        arguments = ["--dataset", "no file", "--output", run_copy, "--overwrite", "--cpu", "--quiet"]
        # Before any row is read.
        sentence = failure(capsys, "train", *arguments)
        assert sentence == (
            f"another training is writing to {run_copy}; wait until it has ended or choose another --output"
        )
        assert main(["info", str(run_copy)]) == 0
        assert main(["evaluate", str(run_copy), "--quiet"]) == 0
        assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert "no such file" in failure(capsys, "train", *arguments)


@pytest.mark.parametrize("name", ["best.pt", "history.csv", "encoders/mine.json"])
def test_a_directory_of_other_files_is_left_alone(tmp_path, capsys, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    arguments = ["train", "--dataset", "synthetic", "--rows", "200", "--cpu", "--quiet"]
    arguments += ["--output", str(tmp_path / "mine"), "--overwrite"]
    assert f"holds {name.split('/')[0]}, but no config.json, so it is not a run" in failure(capsys, *arguments)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("flags", [("--lr", "inf"), ("--mixed-precision", "fp16")])
def test_a_refused_overwrite_keeps_the_run(run_copy, capsys, flags):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    arguments = ["train", "--dataset", "synthetic", "--rows", "200", "--cpu", "--quiet", "--overwrite"]
    failure(capsys, *arguments, "--output", str(run_copy), *flags)
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_bf16_trains_on_the_cpu(tmp_path):
    arguments = ["train", "--dataset", "synthetic", "--rows", "400", "--epochs", "1", "--cpu", "--quiet"]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--mixed-precision", "bf16"]) == 0


def test_an_interrupted_run_tells_how_to_go_on(run_copy, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_run", interrupt)
    assert main(["train", "--output", str(run_copy), "--resume"]) == 130
    assert capsys.readouterr().err.endswith(
        f"interrupted; go on with: dien-fast train --output {run_copy} --resume\n"
    )
    # The checkpoint that is there belongs to the run that was to be replaced.
    for arguments in (["--output", str(run_copy), "--overwrite"], ["--output", str(tmp_path / "none")]):
        assert main(["train", *arguments]) == 130
        assert capsys.readouterr().err.endswith("interrupted; it had no checkpoint yet, so nothing has changed\n")


def test_sigterm_ends_a_training_as_ctrl_c_does(run_copy, monkeypatch, capsys):
    def terminated(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "train_run", terminated)
    assert main(["train", "--output", str(run_copy), "--resume"]) == 143
    assert capsys.readouterr().err == (
        f"\ndien-fast: terminated; go on with: dien-fast train --output {run_copy} --resume\n"
    )
    assert signal.getsignal(signal.SIGTERM) is before


# predict, evaluate and info


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predict_adds_a_column_to_the_rows_in_their_order(shop, tmp_path, capsys, ending):
    output = tmp_path / f"scored.{ending}"
    assert main(["predict", str(shop / "run"), str(shop / "new.parquet"), "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out == f"50 rows written to {output}\n"
    scored = pd.read_parquet(output) if ending == "parquet" else pd.read_csv(output, keep_default_na=False)
    table = pd.read_parquet(shop / "new.parquet")
    assert scored.columns.tolist() == [*table.columns, "probability"]
    assert scored["item"].tolist() == table["item"].tolist()
    assert scored["probability"].between(0, 1).all()
    assert scored["probability"].nunique() > 10
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_predict_reads_standard_input_and_writes_standard_output(shop, tmp_path, capsys, monkeypatch):
    sink = io.BytesIO()
    pa.csv.write_csv(pa.parquet.read_table(shop / "new.parquet"), sink)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sink.getvalue())))
    assert main(["predict", str(shop / "run"), "-", "--output", "-", "--quiet"]) == 0
    piped = pd.read_csv(io.StringIO(capsys.readouterr().out))
    output = tmp_path / "scored.TSV.gz"
    assert main(["predict", str(shop / "run"), str(shop / "new.parquet"), "--output", str(output), "--quiet"]) == 0
    file = pd.read_csv(output, sep="\t", compression="gzip")
    np.testing.assert_allclose(piped["probability"], file["probability"], rtol=1e-6)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sink.getvalue())))
    assert main(["evaluate", str(shop / "run"), "-", "--quiet"]) == 0
    assert "rows: 50\n" in capsys.readouterr().out


def test_predict_takes_unseen_words_empty_histories_and_no_labels(shop, tmp_path):
    table = pd.read_parquet(shop / "new.parquet").drop(columns=["clicked", "who", "when"])
    table.loc[:9, ["item", "brand", "country"]] = ["never", "seen", "XX"]
    table.loc[5:14, ["past_items", "past_brands"]] = ""
    table.loc[10:14, "price"] = None
    table.to_csv(tmp_path / "new.csv", index=False)
    arguments = ["predict", str(shop / "run"), str(tmp_path / "new.csv"), "--quiet", "--column", "p"]
    assert main([*arguments, "--output", str(tmp_path / "scored.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "scored.parquet")["p"].notna().all()


def test_evaluate_repeats_the_test_metrics_and_takes_other_tables(shop, capsys):
    metrics = json.loads((shop / "run" / "metrics.json").read_text())
    assert main(["evaluate", str(shop / "run"), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows: 40"
    assert lines[1] == f"AUC: {metrics['test_auc']:.4f}"
    assert lines[2] == f"LogLoss: {metrics['test_logloss']:.4f}"
    assert main(["evaluate", str(shop / "run"), str(shop / "new.parquet"), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("rows: 50\nAUC: 0.")


def test_evaluate_says_what_is_undefined(shop, tmp_path, capsys):
    table = pa.parquet.read_table(shop / "new.parquet")
    table = table.filter(pa.compute.equal(table["clicked"], 1))
    pa.parquet.write_table(table, tmp_path / "clicks.parquet")
    assert main(["evaluate", str(shop / "run"), str(tmp_path / "clicks.parquet"), "--quiet"]) == 0
    assert "AUC: undefined for these rows" in capsys.readouterr().out.splitlines()


def test_info_shows_versions_and_a_run(shop, run_copy, capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "backend: " in out
    assert main(["info", str(shop / "run")]) == 0
    out = capsys.readouterr().out
    assert "model: dien" in out
    assert '"test_auc"' in out
    (run_copy / "metrics.json").unlink()
    assert main(["info", str(run_copy)]) == 0
    assert "metrics: none, the run is not finished" in capsys.readouterr().out


def test_info_draws_what_the_model_attends_to(shop, tmp_path, capsys):
    arguments = ["info", str(shop / "run"), "--attention", str(tmp_path / "pictures")]
    assert main([*arguments, "--user", "u3", "--candidates", "i1, i2,i3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("written: ")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["attention.png", "interest.png"]
    sentence = failure(capsys, *arguments, "--candidates", "i1,unheard", "--row", "1")
    assert sentence == "candidate 'unheard' is in no row of the table, so its 'brand' is not known"
    assert failure(capsys, "info", "--attention", "x").startswith("--attention needs a run directory")


def test_info_names_what_the_model_does_not_know(shop, tmp_path, capsys):
    table = pa.table(
        {
            "country": ["NO"],
            "price": [1.0],
            "words": ["new"],
            "item": ["novel"],
            "brand": ["b1"],
            "past_items": ["i1;strange"],
            "past_brands": ["b1;b2"],
        }
    )
    pa.parquet.write_table(table, tmp_path / "one.parquet")
    arguments = ["info", str(shop / "run"), "--attention", str(tmp_path), "--table", str(tmp_path / "one.parquet")]
    assert main(arguments) == 0
    candidates, history, written = capsys.readouterr().out.splitlines()[-3:]
    assert candidates == "1 of 1 candidates are unknown to the model, which sees them as one word: novel"
    assert history == "1 of 2 items of the history are unknown to the model, which sees them as one word: strange"
    assert written.startswith("written: ")


def test_a_candidate_may_hold_a_comma():
    parse = cli.build_parser().parse_args
    for text, candidates in (
        ("50, 181,258", ["50", "181", "258"]),
        ('"Birdcage, The",Fargo', ["Birdcage, The", "Fargo"]),
        ('Fargo, "a ""b"", c"', ["Fargo", 'a "b", c']),
        ('7" single,b', ['7" single', "b"]),
    ):
        assert parse(["info", "run", "--candidates", text]).candidates == candidates


def test_the_options_of_train_are_the_settings_with_their_defaults():
    parser = cli.build_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command" or action.choices)
    options = {action.dest: action for action in commands.choices["train"]._actions}
    for name, rule in rules(RunConfig).items():
        assert (name in options) == rule.option, name
        if rule.option:
            default = getattr(RunConfig(), name)
            assert options[name].help == with_default(rule.help, default)
            shown = ",".join(map(str, default)) if isinstance(default, list) else str(default)
            flag = options[name].option_strings[0]
            words = [flag] if default is False else [flag, shown]  # a switch takes no value
            assert getattr(parser.parse_args(["train", *words]), name) == (default is False or default)
    assert f"(default: {Source().rows})" in options["rows"].help


def test_help_explains_itself(capsys):
    for arguments in (["--help"], ["train", "--help"], ["predict", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert "dien-fast" in capsys.readouterr().out
    for arguments in (
        ["train", "--workers", "-1"],
        ["train", "--mlp-hidden", "a"],
        ["train", "--resume", "--overwrite"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
