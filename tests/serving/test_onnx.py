"""Models in ONNX: ONNX Runtime alone gives the numbers of predict; what is refused."""

import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from served import KINDS, all_empty, arguments_of, hard_table, run_of
from shop import failure, make_shop

from dien_fast.cli import main
from dien_fast.errors import DienFastError
from dien_fast.ops.backend import LOADED
from dien_fast.serving import OnnxModel, export_onnx, onnx_model
from dien_fast.serving.programs import example
from dien_fast.training.runs import load

# An export takes seconds, and the exporter's first import as many.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not LOADED, reason="the export needs the native library"),
]
CANDIDATE = ("item", "brand", "price")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A directory with a run and the file that the command makes of it."""
    directory = make_shop(tmp_path_factory.mktemp("shop"))
    words = ["export", str(directory / "run"), "--format", "onnx", "--output", str(directory / "model.onnx")]
    assert main([*words, "--candidate-features", ",".join(CANDIDATE)]) == 0
    return directory


def test_the_file_carries_what_it_needs(shop, capsys):
    assert main(["check", str(shop / "model.onnx")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("candidates: differs from the exported model by ")
    assert lines[1].startswith(f"{shop / 'model.onnx'}: dien, exported by dien-fast ")
    model, run = OnnxModel(shop / "model.onnx"), load(shop / "run")
    assert model.description["fingerprint"] == run.encoders.fingerprint()
    assert model.encoders()["item"] == run.encoders["item"].to_dict()
    graph = onnx.load(shop / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [opset.domain for opset in graph.opset_import] == [""]
    assert not graph.functions
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("GRU"), kinds.count("Loop")) == (1, 1)


def test_rows_of_a_table_are_users_with_a_candidate_each(shop):
    model, run = OnnxModel(shop / "model.onnx", threads=1), load(shop / "run")
    table = hard_table(300)
    items = table.select(CANDIDATE)
    arguments = arguments_of(model.inputs("candidates"), run, table, items, np.arange(301))
    np.testing.assert_allclose(model.run("candidates", arguments).numpy(), run.predict(table), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_gives_the_numbers_of_score_candidates(shop, tmp_path, kind):
    run = run_of(load(shop / "run"), kind)
    export_onnx(run, tmp_path / "model.onnx")
    model = OnnxModel(tmp_path / "model.onnx")
    inputs = model.inputs("candidates")
    users, items = hard_table(20).drop_columns(["item", "brand"]), hard_table(90, seed=1).select(["item", "brand"])
    counts = np.array([0, 1, 9, 8] * 5)
    offsets = np.concatenate([[0], counts.cumsum()])
    arguments = arguments_of(inputs, run, users, items, offsets)
    found = model.run("candidates", arguments).numpy()
    np.testing.assert_allclose(found, run.score_candidates(users, items, offsets), rtol=0, atol=1e-6)
    for given in (all_empty(inputs), example(inputs, users=1), example(inputs, users=0)):
        assert model.run("candidates", given).shape == given[[item.name for item in inputs].index("item")].shape


def test_wrong_arguments_are_refused(shop):
    model = OnnxModel(shop / "model.onnx")
    inputs = model.inputs("candidates")
    good = list(example(inputs))
    place = [item.name for item in inputs].index("item")
    with pytest.raises(DienFastError, match=r"item must be int64 with one dimension, got torch\.int32"):
        model.run("candidates", [*good[:place], good[place].int(), *good[place + 1 :]])
    with pytest.raises(DienFastError, match="program must be one of candidates, got 'rows'"):
        model.run("rows", good)
    wrong = torch.full_like(good[place], 1000)
    with pytest.raises(DienFastError, match=r"candidates: ONNX Runtime refuses the arguments: .*1000"):
        model.run("candidates", [*good[:place], wrong, *good[place + 1 :]])


def test_files_that_are_no_models(shop, tmp_path, capsys):
    assert "none.onnx cannot be read: no such file" in failure(capsys, "check", tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    assert "is not a model that ONNX Runtime reads: " in failure(capsys, "check", tmp_path / "text.onnx")
    shutil.copy(shop / "model.onnx", tmp_path / "cut.onnx")
    with (tmp_path / "cut.onnx").open("rb+") as file:
        file.truncate(5000)
    assert "is not a model that ONNX Runtime reads: " in failure(capsys, "check", tmp_path / "cut.onnx")
    content = bytearray((shop / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(content)
    assert failure(capsys, "check", tmp_path / "flipped.onnx").endswith("is damaged: its checksum is wrong")
    graph = onnx.load(shop / "model.onnx")
    entries = {entry.key: entry for entry in graph.metadata_props}
    entries["dien_fast.json"].value = json.dumps(json.loads(entries["dien_fast.json"].value) | {"format": 99})
    graph.metadata_props.remove(entries["dien_fast.sha256"])  # which was that of another content
    onnx.save(graph, tmp_path / "new.onnx")
    assert "has format 99, this version of dien-fast reads 1" in failure(capsys, "check", tmp_path / "new.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    sentence = failure(capsys, "check", tmp_path / "other.onnx")
    assert sentence.endswith("was not exported by dien-fast: it has no metadata dien_fast.json")


def test_what_cannot_be_exported(shop, tmp_path, capsys, monkeypatch):
    run = load(shop / "run")
    words = ("export", shop / "run", "--output")
    assert failure(capsys, *words, tmp_path / "m.pt2", "--format", "onnx").startswith(
        "output must end in .onnx, got "
    )
    assert failure(capsys, *words, tmp_path / "m.txt").startswith("output must end in .onnx or .pt2, got ")
    with pytest.raises(DienFastError, match=r"output must end in \.onnx"):
        export_onnx(run, tmp_path / "model.pt2")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_model, "_LARGEST", 1000)
        with pytest.raises(DienFastError, match=r"an ONNX file holds less than 2 GiB, but the model has 0\.0 GiB"):
            export_onnx(run, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    sentence = failure(capsys, *words, tmp_path / "model.onnx")
    assert sentence == 'onnxruntime is not installed: pip install "dien-fast[onnx]"'
    assert not [*tmp_path.iterdir()]
