"""``dien-fast tune``: a study that goes on after an interruption, and whose best setting runs as it is."""

import json
import shlex

import optuna
import pytest
from shop import SCHEMA, failure, shop_table

from dien_fast.cli import main
from dien_fast.errors import DienFastError
from dien_fast.training import pipeline
from dien_fast.training.tuning import Range


@pytest.fixture
def command(tmp_path):
    shop_table().to_pandas().to_csv(tmp_path / "clicks.csv", index=False)
    (tmp_path / "clicks.toml").write_text(SCHEMA)
    data = ["--dataset", str(tmp_path / "clicks.csv"), "--schema", str(tmp_path / "clicks.toml")]
    search = ["--search", "lr=1e-3:1e-1", "embedding_size=4,8", "mlp_dropout=0.0:0.5"]
    return ["tune", *search, *data, "--epochs", "2", "--cpu", "--trials", "3", "--output", str(tmp_path / "tuned")]


def study_of(tmp_path):
    return optuna.load_study(study_name="dien-fast", storage=f"sqlite:///{tmp_path / 'tuned' / 'study.db'}")


@pytest.mark.long
def test_the_best_setting_runs_as_it_is(command, tmp_path, capsys):
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 trials, 0 of them finished before"
    assert lines[1].startswith("trial 0: validation AUC 0.")
    study = study_of(tmp_path)
    values = {trial.number: trial.value for trial in study.trials}
    assert len(values) == 3
    assert all(0.001 <= trial.params["lr"] <= 0.1 for trial in study.trials)
    assert lines[-2] == f"best validation AUC: {study.best_value:.4f}; train with these settings:"
    words = shlex.split(lines[-1])
    assert words[:2] == ["dien-fast", "train"]
    assert main(words[1:]) == 0
    metrics = json.loads((tmp_path / "tuned" / "best" / "metrics.json").read_text())
    assert metrics["valid_auc"] == study.best_value

    # The same command has nothing left to do; with more trials it goes on.
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("3 trials, 3 of them finished before\nbest validation AUC")
    assert main([*command, "--trials", "4"]) == 0
    trials = study_of(tmp_path).trials
    assert len(trials) == 4
    assert len({trial.params["lr"] for trial in trials}) == 4


def test_a_trial_that_was_interrupted_is_repeated(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "train_run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on with what is missing\n")
    (interrupted,) = study_of(tmp_path).trials
    monkeypatch.setattr(pipeline, "train_run", lambda *_, **__: {"valid_auc": 0.6})
    assert main([*command, "--trials", "1"]) == 0
    trials = study_of(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[1].params == interrupted.params


@pytest.mark.slow
def test_a_search_that_was_interrupted_is_the_same_search(command, tmp_path, capsys, monkeypatch):
    """Past the ten trials that are drawn by chance, too; what a trial gives depends on its settings alone."""
    interrupting = []

    def train_run(source, config, *_, on_epoch, **__):
        if interrupting and interrupting.pop():
            raise KeyboardInterrupt
        auc = 0.5 + config.lr + config.mlp_dropout / 100
        on_epoch({"epoch": 1, "valid_auc": auc})
        return {"valid_auc": auc}

    def search(output):
        status = None
        while status != 0:
            status = main([*command, "--trials", "14", "--seed", "3", "--output", str(output)])
            assert status in (0, 130)
        ended = {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
        study = optuna.load_study(study_name="dien-fast", storage=f"sqlite:///{output}/study.db")
        return [(trial.params, trial.value) for trial in study.trials if trial.state in ended]

    monkeypatch.setattr(pipeline, "train_run", train_run)
    whole = search(tmp_path / "whole")
    assert len({str(params) for params, _ in whole}) == 14
    interrupting = [False, True, True, False] * 5
    assert search(tmp_path / "interrupted") == whole


def test_trials_below_the_median_are_pruned_after_two_epochs(command, tmp_path, capsys, monkeypatch):
    aucs = iter([0.8, 0.81, 0.82, 0.83, 0.84, 0.6])
    epochs = []

    def train_run(*_, on_epoch, **__):
        auc = next(aucs)
        for epoch in (1, 2, 3, 4):
            epochs.append(epoch)
            on_epoch({"epoch": epoch, "valid_auc": auc})
        return {"valid_auc": auc}

    monkeypatch.setattr(pipeline, "train_run", train_run)
    assert main([*command, "--trials", "6"]) == 0
    assert [trial.state.name for trial in study_of(tmp_path).trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert epochs[-1] == 3
    assert "trial 5: pruned" in capsys.readouterr().out


def test_a_trial_that_diverges_is_a_result(command, tmp_path, capsys, monkeypatch):
    def train_run(*_, **__):
        raise DienFastError("training diverged in epoch 1: the loss is nan")

    monkeypatch.setattr(pipeline, "train_run", train_run)
    assert failure(capsys, *command) == "no trial was finished, so there is no best one"
    assert [trial.state.name for trial in study_of(tmp_path).trials] == ["PRUNED"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--trials", "0"], "trials must be at least 1, got 0"),
        (["--search", "lr"], "search must be NAME=LOW:HIGH or NAME=A,B, got 'lr'"),
        (["--search", "lr=2:1"], "search must be NAME=LOW:HIGH or NAME=A,B, got 'lr=2:1'"),
        (["--search", "lr=-1.0:1.0"], "lr must be a finite number of at least 0, got -1.0"),
        (["--search", "embedding_size=0:8"], "embedding_size must be at least 1, got 0"),
        (["--resume"], "--resume is decided by tune itself"),
    ],
)
def test_wrong_arguments_are_named(command, capsys, change, message):
    assert message in failure(capsys, *command, *change)


def test_another_search_needs_another_directory(command, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "train_run", lambda *_, **__: {"valid_auc": 0.6})
    assert main(command) == 0
    capsys.readouterr()
    assert "choose another --output" in failure(capsys, *command, "--search", "lr=1e-3:1e-2")


def test_ranges():
    study = optuna.create_study()
    trial = study.ask()
    assert 2 <= int(Range.parse("embedding_size=2:9").suggest(trial)) <= 9
    assert 0.0 <= float(Range.parse("mlp_dropout=0.0:0.5").suggest(trial)) <= 0.5
    assert Range.parse("gru-type=AGRU").suggest(trial) == "AGRU"
    assert not trial.distributions["mlp_dropout"].log
    Range.parse("lr=1e-4:1e-2").suggest(trial)
    assert trial.distributions["lr"].log
