"""What divided tables refuse, how their rows begin and how plain models read them; none of it needs TorchRec.

`tests/peers/shard_with_torchrec.py` trains with them.
"""

import importlib.util
import io
import pickle
import warnings
from dataclasses import replace
from enum import Enum

import pytest
import torch
from tiny import TinyModel, loaders
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from dien_fast import DIEN, AttentionGroup
from dien_fast.cli import main
from dien_fast.errors import CheckpointError, DienFastError
from dien_fast.nn.embedding import RemoteEmbedding
from dien_fast.training import TrainSettings, fit
from dien_fast.training.optimizers import table_rule
from dien_fast.training.sharded.checks import check_sharded, sharded_rule
from dien_fast.training.sharded.files import read_tables
from dien_fast.training.sharded.tables import initial_rows, sharded_tables

SHARDED = TrainSettings(tables="torchrec")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_accumulation": 2}, "gradient_accumulation must be 1 with tables 'torchrec'.* got 2"),
        (
            {"mixed_precision": "fp16"},
            "mixed_precision must be 'no' or 'bf16' with tables 'torchrec'.* got 'fp16'",
        ),
        ({"table_optimizer": "sparse-adam"}, "one of rowwise-adagrad, adagrad, sgd.* got 'sparse-adam'"),
        ({"table_optimizer": "adam"}, "one of rowwise-adagrad, adagrad, sgd.* got 'adam'"),
        ({"table_optimizer": "sgd"}, "weight_decay must be 0 with table_optimizer 'sgd'.* got 0.0001"),
        ({"table_optimizer": "adagrad"}, "weight_decay must be 0 with table_optimizer 'adagrad'.* got 0.0001"),
    ],
)
def test_what_divided_tables_cannot_do_is_refused(changes, said):
    with pytest.raises(DienFastError, match=said):
        check_sharded(replace(SHARDED, **changes), cpu=True)


def test_auto_is_rowwise_adagrad():
    assert sharded_rule(SHARDED.table_optimizer) == "rowwise-adagrad"


def test_optimizers_of_divided_tables_are_refused_for_plain_ones():
    with pytest.raises(DienFastError, match="'sgd' is one of divided tables; train with --tables torchrec"):
        table_rule("sgd", TinyModel(), None)


@pytest.mark.skipif(importlib.util.find_spec("torchrec") is not None, reason="TorchRec is installed")
def test_without_torchrec_the_command_says_how_to_install_it(tmp_path, capsys):
    assert (
        main(["train", "--dataset", "synthetic", "--tables", "torchrec", "--output", str(tmp_path / "run")]) == 2
    )
    error = capsys.readouterr().err
    assert "tables 'torchrec' need TorchRec's CPU build: pip install --no-deps torchrec fbgemm-gpu-cpu" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_model_with_remote_tables_needs_a_run_directory():
    model = TinyModel()
    model.remote_tables = object()
    with pytest.raises(ValueError, match="run_directory must be given for a model with remote_tables"):
        fit(model, loaders()[0], progress=False, cpu=True)


def test_plain_tables_are_left_alone():
    model = TinyModel()
    with sharded_tables(model, TrainSettings()):
        assert not hasattr(model, "remote_tables")


def test_initial_rows_do_not_depend_on_who_draws_them():
    whole = initial_rows(3, 1, 0, 70_000, 6)
    assert not whole[0].any()
    parts = [initial_rows(3, 1, begin, end, 6) for begin, end in ((0, 5), (5, 65_536), (65_536, 70_000), (9, 9))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(initial_rows(3, 2, 0, 5, 6), whole[:5])
    assert abs(whole.mean()) < 0.01
    assert abs(whole.std() - 1) < 0.01


def make_model(kind=DIEN, width=6):
    group = AttentionGroup("items", [{"ad": "item", "pos_hist": "history"}], hidden_layers=[4])
    return kind([], ["item", "flag"], ["history"], {"item": 9, "history": 9, "flag": 3}, width, [group], [4],
                shared_embeddings={"history": "item"})  # fmt: skip


def test_a_model_without_its_tables():
    model = make_model(type("DIEN", (DIEN,), {"embedding_type": RemoteEmbedding}))
    whole = make_model()
    assert {*whole.state_dict()} - {*model.state_dict()} == {"embedding:item.weight", "embedding:flag.weight"}
    with pytest.raises(RuntimeError, match="the table of 9 rows is elsewhere"):
        model.look_up({"item": [torch.tensor([1])]})


def write(path, **tables):
    """Write tables as processes that divide them do."""
    state = {"tables": tables, "optimizer": {"item/momentum1": torch.ones(9)}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        state_dict_saver.save(state, storage_writer=FileSystemWriter(path), no_dist=True)
    return path


def test_a_plain_model_reads_divided_tables(tmp_path):
    item, flag = torch.randn(9, 8), torch.randn(3, 8)
    found = read_tables(make_model(), write(tmp_path / "tables-1", item=item, flag=flag))
    assert {*found} == {"embedding:item.weight", "embedding:flag.weight"}
    assert torch.equal(found["embedding:item.weight"], item[:, :6])
    assert torch.equal(found["embedding:flag.weight"], flag[:, :6])


def test_tables_that_do_not_fit_are_named(tmp_path):
    path = write(tmp_path / "tables-1", item=torch.randn(8, 8))
    with pytest.raises(CheckpointError, match=r"'tables.item' must have shape \(9, 8\), got \(8, 8\)"):
        read_tables(make_model(), path)


def test_a_damaged_directory_of_tables_is_named(tmp_path):
    path = write(tmp_path / "tables-1", item=torch.randn(9, 8), flag=torch.randn(3, 8))
    (part,) = path.glob("*.distcp")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="tables-1 cannot be read"):
        read_tables(make_model(), path)
    part.unlink()
    with pytest.raises(CheckpointError, match="tables-1 cannot be read"):
        read_tables(make_model(), path)
    (path / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read: No such file"):
        read_tables(make_model(), path)


def change_index(path, change):
    """Write the index of a directory of tables anew."""
    index = pickle.loads((path / ".metadata").read_bytes())
    change(index)
    (path / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize("name", ["../tables-2/__0_0.distcp", "/etc/passwd"])
def test_an_index_of_tables_names_files_beside_it_alone(tmp_path, name):
    path = write(tmp_path / "tables-1", item=torch.randn(9, 8))
    write(tmp_path / "tables-2", item=torch.randn(9, 8))

    def change(index):
        for key, stored in index.storage_data.items():
            index.storage_data[key] = replace(stored, relative_path=name)

    change_index(path, change)
    with pytest.raises(CheckpointError, match="which is not inside it"):
        read_tables(make_model(), path)


class OldPickler(pickle.Pickler):
    """Writes the members of enums as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_an_index_of_tables_that_python_3_11_2_has_written(tmp_path):
    path = write(tmp_path / "tables-1", item=(item := torch.randn(9, 8)), flag=torch.randn(3, 8))
    index = pickle.loads((path / ".metadata").read_bytes())
    written = io.BytesIO()
    OldPickler(written).dump(index)
    assert b"getattr" in written.getvalue()
    (path / ".metadata").write_bytes(written.getvalue())
    assert torch.equal(read_tables(make_model(), path)["embedding:item.weight"], item[:, :6])


def test_an_index_of_tables_takes_no_attribute_of_anything_else(tmp_path):
    path = write(tmp_path / "tables-1", item=torch.randn(9, 8))

    class Attribute:
        def __reduce__(self):
            return getattr, (torch.Size, "__init__")

    (path / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(CheckpointError, match=r"names builtins\.getattr"):
        read_tables(make_model(), path)


def test_an_index_of_tables_that_claims_more_than_its_files_have(tmp_path):
    width = 1 << 24
    path = write(tmp_path / "tables-1", item=torch.randn(9, 8))
    change_index(
        path, lambda index: setattr(index.state_dict_metadata["tables.item"], "size", torch.Size([9, width]))
    )
    with torch.device("meta"):
        model = make_model(width=width)
    with pytest.raises(CheckpointError, match="its tables need more bytes than its files have"):
        read_tables(model, path)


def test_an_index_of_tables_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = write(tmp_path / "tables-1", item=torch.randn(9, 8))
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"damaged or not from dien-fast \(it names builtins.exec\)"):
        read_tables(make_model(), path)
    assert not (tmp_path / "ran").exists()
