"""Files whose maker is no friend: what they name lies beside them, and they are no programs."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from prepared_clicks import write_clicks

import dien_fast
from dien_fast.data import Encoders, PreparedData, fetch_ml_100k, prepare
from dien_fast.data import movielens as movielens_module
from dien_fast.errors import CheckpointError, DataError, DienFastError
from dien_fast.files import path_inside
from dien_fast.training.checkpoints import load_checkpoint
from dien_fast.training.runs import load

OUTSIDE = ["../outside", "/etc/passwd", "a/../../outside", "..", "", "link/outside", "a\0b"]


@pytest.fixture
def data(tmp_path):
    _, schema, pattern = write_clicks(tmp_path / "clicks", rows=100)
    prepare(pattern, schema, tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="which is not inside it"):
        path_inside(tmp_path / "inside", name, DataError)


def test_a_name_inside_is_kept_whatever_leads_to_the_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert path_inside(tmp_path / "link", "encoders/item.json") == tmp_path / "link" / "encoders/item.json"


def edit(path, change):
    content = json.loads(path.read_text())
    content.pop("checksum", None)  # which whoever changes the rest can compute, too
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../train-0-000000.arrow", "/dev/zero"])
def test_a_manifest_that_names_a_shard_elsewhere(data, name):
    (shard,) = data.glob("train-*.arrow")
    shutil.copy(shard, data.parent)
    edit(data / "manifest.json", lambda content: content["shards"][0].update(file=name))
    with pytest.raises(DataError, match="which is not inside it"):
        PreparedData(data)


def test_a_shard_that_is_a_link_out_of_the_directory(data):
    (shard,) = data.glob("train-*.arrow")
    shard.rename(data.parent / "elsewhere.arrow")
    shard.symlink_to(data.parent / "elsewhere.arrow")
    with pytest.raises(DataError, match="which is not inside it"):
        PreparedData(data)


def test_a_manifest_that_has_a_checksum_of_a_file_elsewhere(data):
    edit(data / "manifest.json", lambda content: content["checksums"].update({"../../etc/passwd": "0"}))
    with pytest.raises(DataError, match="which is not inside it"):
        PreparedData(data)


def test_an_encoder_that_names_words_elsewhere(data):
    path = next(path for path in (data / "encoders").glob("*.json") if "word_by_id" in path.read_text())

    def change(content):
        del content["word_by_id"]
        content |= {"word_file": "../../words.arrow", "unknown": 1}

    edit(path, change)
    with pytest.raises(DataError, match=r"names the file '../../words.arrow', which is not inside it"):
        Encoders.load(data / "encoders")


def test_a_checkpoint_that_names_tables_elsewhere(run):
    content = load_checkpoint(run / "best.pt")
    torch.save(content | {"tables": "../tables-1"}, run / "best.pt")
    with pytest.raises(CheckpointError, match="which is not inside it"):
        load(run)


@pytest.mark.parametrize("name", ["../moved", "/tmp/moved", "encoders/../../moved"])
def test_a_list_of_files_that_would_move_one_elsewhere(run, name):
    victim = run.parent / "victim"
    victim.write_text("mine")
    ready = run / ".ready"
    ready.mkdir()
    (ready / "moved").write_text("hostile")
    (ready / "names.json").write_text(json.dumps([name, "../../victim"]))
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="which is not inside it"):
        load(run)
    after = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {path: text for path, text in before.items() if path.name != ".lock"} == after


def test_a_link_through_which_files_elsewhere_would_be_removed(run):
    others = run.parent / "others"
    others.mkdir()
    (others / "settings.json").write_text("{}")
    shutil.rmtree(run / "encoders")
    (run / "encoders").symlink_to(others)
    (run / ".ready").mkdir()
    (run / ".ready" / "names.json").write_text("[]")
    with pytest.raises(CheckpointError, match="which is not inside it"):
        load(run)
    assert (others / "settings.json").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "nonsense"])
def test_a_list_of_files_that_is_damaged(run, content):
    (run / ".ready").mkdir()
    (run / ".ready" / "names.json").write_text(content)
    with pytest.raises(CheckpointError, match="the list of the files of a new run, is missing or damaged"):
        load(run)


def test_an_archive_gives_the_files_that_were_asked_for_alone(tmp_path, monkeypatch):
    """Members of the downloaded archive are written under names of our own; another archive is refused."""
    import zipfile

    def download(into, directory):
        with zipfile.ZipFile(into / "recbole.whl", "w") as archive:
            archive.writestr("../../outside", "hostile")
            archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", "hostile")
        return into / "recbole.whl"

    monkeypatch.setattr(movielens_module, "_download", download)
    with pytest.raises(DataError, match=r"recbole\.whl: sha256 is \w+, expected"):
        fetch_ml_100k(tmp_path / "data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# programs


class Program:
    """A pickle of it calls a function when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_checkpoint_that_is_a_program_does_not_run(run, tmp_path):
    for content in ({"model": Program(tmp_path / "ran")}, Program(tmp_path / "ran")):
        torch.save(content, run / "best.pt")
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load(run)
        # As torch wrote them before version 1.6: a pickle without an archive around it.
        torch.save(content, run / "best.pt", _use_new_zipfile_serialization=False)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load(run)
        (run / "best.pt").write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load(run)
    assert not (tmp_path / "ran").exists()


# What reads a file and may run what is in it. Each place that is left says why it may.
OPENERS = {
    "torch.load",
    "torch.jit.load",
    "np.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
}
OPENERS |= {"pd.read_pickle", "yaml.load", "marshal.load", "shelve.open", "eval", "exec", "load_pt2"}
ALLOWED = {
    "training/checkpoints.py: torch.load": "weights_only=True",
    "training/sharded/files.py: pickle.Unpickler": "takes the classes of an index alone",
    "patches/weights.py: np.load": "arrays, without allow_pickle",
    "serving/package.py: load_pt2": "a .pt2 file is a program, as the page on it says",
}


def opened(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call | ast.ClassDef):
            names = [node.func] if isinstance(node, ast.Call) else node.bases
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            for name in map(ast.unparse, names):
                if name in OPENERS:
                    yield name, keywords


def test_nothing_that_is_read_is_a_program():
    package = Path(dien_fast.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        for name, keywords in opened(path):
            found[f"{path.relative_to(package)}: {name}"] = keywords
    assert found.keys() == ALLOWED.keys()
    assert found["training/checkpoints.py: torch.load"]["weights_only"] == "True"
    assert "allow_pickle" not in found["patches/weights.py: np.load"]


def test_a_study_holds_no_pickle(tmp_path):
    """Optuna's own sampler by evolution pickles its state into the study; the one that is used does not."""
    optuna = pytest.importorskip("optuna")
    from dien_fast.training.tuning import Range, next_trial, open_study

    study = open_study(tmp_path / "study.db", [Range.parse("lr=0.1:0.2")])
    for _ in range(3):
        trial = next_trial(study, 0)
        study.tell(trial, trial.suggest_float("lr", 0.1, 0.2))
    assert isinstance(study.sampler, optuna.samplers.TPESampler)
    for trial in study.get_trials():
        # Plain values: they went through JSON.
        assert json.loads(json.dumps(trial.system_attrs)) == trial.system_attrs
    assert issubclass(DataError, DienFastError)
