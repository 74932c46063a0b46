"""``dien-fast prepare``, and the commands that take prepared data in place of a table."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from prepared_clicks import small_pieces
from shop import SCHEMA, failure, run_python, shop_table

from dien_fast import load
from dien_fast.cli import main
from dien_fast.data import PreparedData
from dien_fast.errors import DataError
from dien_fast.training.metrics import auc

TRAIN = ["--epochs", "2", "--embedding-size", "4", "--cpu", "--quiet"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A table, the same table prepared, and a run of each."""
    directory = tmp_path_factory.mktemp("shop")
    pa.csv.write_csv(shop_table(), directory / "clicks.csv")
    (directory / "clicks.toml").write_text(SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        assert main(["prepare", *table(directory), "--output", str(directory / "prepared"), "--quiet"]) == 0
    assert main(["train", *table(directory), "--output", str(directory / "table-run"), *TRAIN]) == 0
    assert main(["train", *prepared(directory), "--output", str(directory / "run"), *TRAIN]) == 0
    return directory


def table(directory):
    return ["--dataset", str(directory / "clicks.csv"), "--schema", str(directory / "clicks.toml")]


def prepared(directory):
    return ["--dataset", str(directory / "prepared")]


def history(run):
    rows = (run / "history.csv").read_text().splitlines()
    return [line.split(",")[:-2] for line in rows]


def test_training_is_that_of_the_table(shop):
    assert history(shop / "run") == history(shop / "table-run")
    metrics = [json.loads((shop / name / "metrics.json").read_text()) for name in ("run", "table-run")]
    assert metrics[0] == metrics[1]


def test_what_is_said(shop, tmp_path, capsys):
    main(["prepare", *table(shop), "--output", str(tmp_path / "out"), "--quiet"])
    assert capsys.readouterr().out.splitlines() == [
        "split: user, each user's own rows in the order of 'when', since the schema names user and time",
        f"400 rows written to {tmp_path / 'out'}: 320 train, 40 valid, 40 test",
    ]
    main(["train", *prepared(shop), "--output", str(tmp_path / "run"), *TRAIN])
    lines = capsys.readouterr().out.splitlines()
    main(["train", *table(shop), "--output", str(tmp_path / "other"), *TRAIN])
    others = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("prepared, 320 training, 40 validation and 40 test rows")
    words = [[line for line in said if line.startswith(("words of", "split"))] for said in (lines, others)]
    assert words[0] == words[1]
    assert len(words[0]) == 7


def test_evaluate(shop, capsys):
    def scores(*arguments):
        assert main(["evaluate", str(shop / "run"), *map(str, arguments), "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    test = json.loads((shop / "run/metrics.json").read_text())
    assert scores()["auc"] == test["test_auc"]
    assert scores(shop / "prepared") == scores()
    assert scores(shop / "prepared", "--part", "valid")["auc"] == test["valid_auc"]
    assert main(["evaluate", str(shop / "table-run"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == scores()


def test_predict(shop, tmp_path, capsys):
    assert (
        main(["predict", str(shop / "run"), str(shop / "clicks.csv"), "--output", str(tmp_path / "a.parquet")])
        == 0
    )
    assert (
        main(["predict", str(shop / "run"), str(shop / "prepared"), "--output", str(tmp_path / "b.parquet")]) == 0
    )
    assert "400 rows written to" in capsys.readouterr().out
    by_row, by_part = (pa.parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert by_part.column_names == ["part", "row", "probability"]
    assert sorted(by_part["row"].to_pylist()) == list(range(400))
    expected = by_row["probability"].to_numpy()[by_part["row"].to_numpy()]
    np.testing.assert_allclose(by_part["probability"].to_numpy(), expected, atol=1e-6)
    arguments = ["--part", "test", "--column", "p", "--output", str(tmp_path / "c.csv")]
    assert main(["predict", str(shop / "run"), str(shop / "prepared"), *arguments]) == 0
    found = pa.csv.read_csv(tmp_path / "c.csv")
    assert (found.num_rows, found.column_names) == (40, ["part", "row", "p"])
    np.testing.assert_allclose(load(shop / "run").predict(shop / "prepared"), found["p"].to_numpy(), atol=1e-6)


def test_a_run_goes_on_within_an_epoch(shop, tmp_path):
    """Stopped behind each step and resumed, training gives the losses of the undisturbed one."""
    from dien_fast.data.sources import Source
    from dien_fast.training.config import RunConfig
    from dien_fast.training.pipeline import train_run
    from dien_fast.training.position import StopRequest, TrainingStopped

    source, config = Source(str(shop / "prepared")), RunConfig(epochs=2, embedding_size=4)
    stop, stops = StopRequest(), 0
    stop.asked = True
    for attempt in range(20):
        try:
            train_run(
                source, config, tmp_path / "run", resume=attempt > 0, cpu=True, progress=False, log=list, stop=stop
            )
            break
        except TrainingStopped:
            stops += 1
    assert stops > 2
    assert history(tmp_path / "run") == history(shop / "run")


def test_settings_that_were_fixed(shop, tmp_path, capsys):
    run = ["--output", tmp_path / "run", *TRAIN]
    for option, name in ((["--min-count", "5"], "min_count"), (["--max-length", "7"], "max_length")):
        sentence = failure(capsys, "train", *prepared(shop), *run, *option)
        assert f"{name} = " in sentence
        assert "was fixed when the data were prepared" in sentence
    assert "--split goes with a table" in failure(capsys, "train", *prepared(shop), *run, "--split", "random")
    assert "--schema goes with a table of your own" in failure(
        capsys, "train", *table(shop)[2:], *prepared(shop), *run
    )
    assert main(["train", *prepared(shop), *map(str, run), "--negatives", "popularity", "--exclude-clicked"]) == 0
    assert load(tmp_path / "run").schema.negatives == "popularity"


def test_data_of_another_run(shop, tmp_path, capsys):
    pa.csv.write_csv(shop_table(seed=5), tmp_path / "other.csv")
    arguments = ["--dataset", str(tmp_path / "other.csv"), *table(shop)[2:], "--output", str(tmp_path / "other")]
    assert main(["prepare", *arguments, "--quiet"]) == 0
    sentence = failure(capsys, "evaluate", shop / "run", tmp_path / "other")
    assert "was not prepared for the run" in sentence


def test_what_prepare_refuses(shop, tmp_path, capsys):
    out = ["--output", tmp_path / "out", "--quiet"]
    assert failure(capsys, "prepare", "--dataset", tmp_path / "*.csv", *table(shop)[2:], *out).endswith(
        "no file fits"
    )
    (tmp_path / "bad.toml").write_text(SCHEMA.replace('"country"', '"land"'))
    sentence = failure(capsys, "prepare", *table(shop)[:2], "--schema", tmp_path / "bad.toml", *out)
    assert "clicks.csv: no column 'land'; the columns are who, when" in sentence
    assert not (tmp_path / "out/manifest.json").exists()
    sentence = failure(capsys, "train", "--dataset", tmp_path / "out", *TRAIN)
    assert (
        sentence
        == f"{tmp_path / 'out'} holds no prepared data: its preparation was interrupted; go on with the "
        + ("same dien-fast prepare")
    )
    assert "holds prepared data already" in failure(
        capsys, "prepare", *table(shop), "--output", shop / "prepared", "--quiet"
    )


def test_damage_is_named(shop, tmp_path, capsys):
    assert main(["prepare", *table(shop), "--output", str(tmp_path / "out"), "--quiet"]) == 0
    (shard,) = (tmp_path / "out").glob("train-*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    run = ["--output", tmp_path / "run", *TRAIN]
    sentence = failure(capsys, "train", "--dataset", tmp_path / "out", *run)
    assert sentence.startswith(f"{shard}: the shard is damaged: the checksum of block 0")
    path = tmp_path / "out/manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    assert "reads version 1" in failure(capsys, "train", "--dataset", tmp_path / "out", *run)
    with pytest.raises(DataError, match="reads version 1"):
        PreparedData(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_read_their_own_blocks(shop, tmp_path):
    """Windows of one block each: every process trains on its own, and all rows are evaluated once."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    ]
    (tmp_path / "small.py").write_text(
        "import sys\n"
        "from dien_fast.cli import main\n"
        "from dien_fast.data import PreparedData\n"
        "PreparedData.dataset.__kwdefaults__['window_bytes'] = 1\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = ["train", *prepared(shop), "--output", tmp_path / "run", *TRAIN, "--batch-size", "32"]
    done = run_python(*launch, tmp_path / "small.py", *run)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert main(["evaluate", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    scores = [
        load(tmp_path / "run").predict(shop / "prepared"),
        PreparedData(shop / "prepared").dataset("test").labels,
    ]
    assert len(scores[0]) == len(scores[1]) == 40
    assert metrics["test_auc"] == pytest.approx(auc(scores[1], scores[0]), abs=1e-6)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(shop, tmp_path):
    """SIGKILL behind each file that is renamed; in the end the directory is that of an undisturbed preparation."""
    script = """if True:
        import os, pathlib, sys
        sys.path.insert(0, {support!r})
        import pytest
        from prepared_clicks import small_pieces
        from dien_fast.cli import main
        small_pieces(pytest.MonkeyPatch())
        replace, left = pathlib.Path.replace, [{count}]
        def counted(self, target):
            done = replace(self, target)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)
            return done
        pathlib.Path.replace = counted
        sys.exit(main({arguments!r}))
    """
    support = str(Path(__file__).parents[1] / "support")
    arguments = ["prepare", *table(shop), "--output", str(tmp_path / "out"), "--quiet"]
    for count in range(1, 30):
        done = run_python("-c", script.format(support=support, count=count, arguments=arguments))
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        if not (tmp_path / "out/manifest.json").exists():
            with pytest.raises(DataError, match="its preparation was interrupted"):
                PreparedData(tmp_path / "out")
    else:
        raise AssertionError("it never came to an end")
    names = {path.name for path in (shop / "prepared").glob("*.arrow")}
    assert {path.name for path in (tmp_path / "out").glob("*.arrow")} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (shop / "prepared" / name).read_bytes()
