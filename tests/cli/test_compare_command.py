"""``dien-fast compare``: the trainings, the table, and what happens when one is interrupted or fails."""

import pandas as pd
import pytest
from shop import SCHEMA, failure, shop_table

from dien_fast.cli import compare, main
from dien_fast.training import pipeline
from dien_fast.training.config import RunConfig

OPTIONS = ["--epochs", "1", "--embedding-size", "4", "--cpu"]


@pytest.fixture
def command(tmp_path):
    """The command on the clicks of a shop, two seeds of DIN and two kinds of DIEN."""
    shop_table().to_pandas().to_csv(tmp_path / "clicks.csv", index=False)
    (tmp_path / "clicks.toml").write_text(SCHEMA)
    data = ["--dataset", str(tmp_path / "clicks.csv"), "--schema", str(tmp_path / "clicks.toml")]
    models = ["--models", "din,dien", "--vary", "gru_type=AGRU", "--seeds", "2"]
    return ["compare", *models, *data, *OPTIONS, "--output", str(tmp_path / "compared")]


def digits(directory):
    """What does not depend on the time of day."""
    table = pd.read_csv(directory / "results.csv")
    return table.drop(columns=["seconds", "epoch_seconds"])


@pytest.mark.long
def test_every_variant_with_every_seed_and_a_table_of_them(command, tmp_path, capsys):
    assert main(command) == 0
    compared = tmp_path / "compared"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 trainings, 0 of them finished before"
    assert lines[1] == "1 of 4: DIN, seed 0"
    assert lines[-1] == f"written to {compared}"
    results = digits(compared)
    names = ["DIN", "DIEN, gru_type AGRU"]
    assert list(zip(results["variant"], results["seed"], strict=True)) == [(n, s) for s in (0, 1) for n in names]
    table = pd.read_csv(compared / "table.csv")
    assert table["variant"].tolist() == names
    assert table["auc"][1] == pytest.approx(results["test_auc"][[1, 3]].mean())
    text = (compared / "table.md").read_text(encoding="utf-8")
    assert text in "\n".join(lines) + "\n"
    assert "Differences are from DIN, with the same seed." in text
    assert (compared / "table.png").exists()

    # A second comparison in reverse order gives every digit again.
    again = [word.replace("din,dien", "dien,din").replace("compared", "again") for word in command]
    assert main([*again, "--baseline", "DIN"]) == 0
    columns = ["variant", "seed"]
    assert (
        digits(tmp_path / "again")
        .sort_values(columns)
        .reset_index(drop=True)
        .equals(results.sort_values(columns).reset_index(drop=True))
    )
    # The same command has nothing left to do; one with a further seed does what is missing.
    pd.read_csv(compared / "results.csv").assign(machine="mine").to_csv(compared / "results.csv", index=False)
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("4 trainings, 4 of them finished before\n|")
    assert main([*command, "--seeds", "3"]) == 0
    assert capsys.readouterr().out.startswith("6 trainings, 4 of them finished before\n")
    assert pd.read_csv(compared / "results.csv")["machine"].fillna("").tolist() == ["mine"] * 4 + [""] * 2


def test_an_interrupted_comparison_goes_on_where_it_was(command, tmp_path, capsys, monkeypatch):
    command = [*command, "--seeds", "1", "--models", "din"]
    monkeypatch.setattr(compare, "result_of", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*command, "--vary", "lr=0.01,0.02"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on with what is missing\n")
    monkeypatch.undo()
    saved = (tmp_path / "compared" / "din-lr=0.01" / "seed-0" / "best.pt").stat().st_mtime_ns
    assert main([*command, "--vary", "lr=0.01,0.02"]) == 0
    # What was trained already is not trained again.
    assert (tmp_path / "compared" / "din-lr=0.01" / "seed-0" / "best.pt").stat().st_mtime_ns == saved
    assert len(digits(tmp_path / "compared")) == 2


@pytest.mark.slow
def test_two_jobs_at_a_time(command, tmp_path, capsys):
    command = [*command, "--seeds", "1", "--models", "din", "--vary", "lr=0.01,0.02", "--jobs", "2"]
    assert main(command) == 0
    assert "threads: 1." in capsys.readouterr().out
    assert len(digits(tmp_path / "compared")) == 2


def test_one_that_fails_does_not_end_the_others(command, tmp_path, capsys):
    command = [*command, "--seeds", "1", "--models", "din", "--vary", "lr=0.01,1e30"]
    sentence = failure(capsys, *command)
    assert sentence.startswith("1 of 2 trainings failed; the first was DIN, lr 1e30, seed 0: training diverged")
    assert digits(tmp_path / "compared")["variant"].tolist() == ["DIN, lr 0.01"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--vary", "lr"], "vary must be NAME=A,B, got 'lr'"),
        (["--vary", "lr=-1"], "lr must be a finite number of at least 0, got -1.0"),
        (["--models", "dino"], "models must be among dien, din"),
        (["--for", "din", "lr"], "for must be NAME=VALUE, got 'lr'"),
        (["--for", "din", "lr=-1"], "lr must be a finite number of at least 0, got -1.0"),
        (["--for", "dsin", "lr=0.1"], "for must name one of the models din, dien, got 'dsin'"),
        (
            ["--for", "dien", "gru_type=GRU"],
            "gru_type is decided by compare itself, so it cannot be fixed for dien",
        ),
        (["--for", "dien", "seed=3"], "seed is decided by compare itself"),
        (["--seed", "3"], "--seed is decided by compare itself"),
        (["--baseline", "DINO"], "baseline must be one of DIN; "),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_trained(command, capsys, monkeypatch, change, message):
    monkeypatch.setattr(pipeline, "train_run", lambda *_, **__: pytest.fail("trained"))
    assert message in failure(capsys, *command, *change)


def test_each_model_may_have_settings_of_its_own(command, tmp_path, capsys):
    command = [*command, "--seeds", "1", "--for", "din", "lr=0.02", "mlp-hidden=8+4", "--for", "dien", "lr=0.01"]
    assert main(command) == 0
    for slug, lr, hidden in (("din", 0.02, [8, 4]), ("dien-gru_type=AGRU", 0.01, [32, 16])):
        config = RunConfig.load(tmp_path / "compared" / slug / "seed-0" / "config.json")
        assert (config.lr, config.mlp_hidden) == (lr, hidden)
    assert digits(tmp_path / "compared")["variant"].tolist() == ["DIN", "DIEN, gru_type AGRU"]
    capsys.readouterr()
    assert "--for din lr=0.02 mlp_hidden=8+4 --for dien" in failure(capsys, *command, "--for", "din", "lr=0.03")


def test_other_options_are_not_mixed_in(command, tmp_path, capsys):
    command = [*command, "--seeds", "1", "--models", "din", "--vary", "lr=0.01"]
    assert main(command) == 0
    capsys.readouterr()
    assert "holds a comparison with the options" in failure(capsys, *command, "--batch-size", "64")


def test_unknown_options_are_refused_as_by_train(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--learning-rate", "1"])
    assert "unrecognized arguments: --learning-rate 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["info", "--learning-rate"])
    assert "unrecognized arguments: --learning-rate" in capsys.readouterr().err
