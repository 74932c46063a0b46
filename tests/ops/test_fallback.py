"""The operators without the native library have its schemas and numbers."""

import re
from pathlib import Path

import pytest
import torch
from recurrence_cases import problem

from dien_fast import Interest, use_backend
from dien_fast.functional import GATES, attention_gru
from dien_fast.nn.native_layers import native_layers
from dien_fast.ops import attention_gru as recurrence
from dien_fast.ops import attention_scores, auxiliary_loss, rows
from dien_fast.ops.cells import CELLS

OFFSETS = torch.tensor([0, 5, 5, 12])
SCHEMAS = [recurrence.SCHEMA, attention_scores.SCHEMA, auxiliary_loss.SCHEMA, *rows.SCHEMAS.values()]

# Nobody exports or scripts these.
WITHOUT_FALLBACK = {"add_rows_", "sum_by_id", "adam_rows_", "adagrad_rows_", "cpu_capability", "vector_bytes"}
SOURCES = Path(__file__).resolve().parents[2] / "csrc"


def test_no_operator_is_forgotten():
    defined = set(re.findall(r'm\.def\(\s*"(\w+)\(', (SOURCES / "library.cpp").read_text()))
    forward = {name for name in defined if not name.endswith("_backward")}
    assert forward - WITHOUT_FALLBACK == {schema.partition("(")[0] for schema in SCHEMAS}
    for name in defined - {"cpu_capability", "vector_bytes"}:
        for key in ("CPU", "Meta"):  # its kernel, and its fake implementation
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dien_fast::{name}", key), (name, key)


@pytest.fixture(autouse=True)
def inputs():
    torch.manual_seed(0)
    return torch.randn(12, 8).double(), torch.randn(3, 8).double()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.partition("(")[0])
def test_schemas(schema):
    operator = getattr(torch.ops.dien_fast, schema.partition("(")[0]).default
    assert str(operator._schema) == f"dien_fast::{schema}"


def arguments_of(leaves, cell, x_start=None):
    att = None if cell == "gru" else leaves["att"]
    sizes = (torch.tensor([7, 0, 4, 7, 2]), None, None)
    return (*(leaves | {"att": att}).values(), *sizes, x_start, CELLS[cell], True, False)


@pytest.mark.parametrize("cell", GATES)
def test_recurrence(cell):
    leaves, _ = problem((5, 7, 3, 6), cell)
    got = recurrence.fallback(*arguments_of(leaves, cell))
    want = torch.ops.dien_fast.attention_gru(*arguments_of(leaves, cell))
    for value, expected in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_recurrence_in_lower_precision(dtype, autocast):
    """Products are computed in float32, as by the public function on the reference backend."""
    leaves, _ = problem((5, 7, 3, 6), "augru", dtype)
    arguments = arguments_of(leaves, "augru")
    with torch.autocast("cpu", enabled=autocast):
        states, last, _ = recurrence.fallback(*arguments)
    with use_backend("reference"):
        want = attention_gru(**leaves, lengths=arguments[7])
    assert states.dtype == last.dtype == dtype
    assert torch.equal(states, want[0])
    assert torch.equal(last, want[1])


def test_recurrence_refuses_what_the_operator_refuses():
    leaves, _ = problem((5, 7, 3, 6), "augru")
    with pytest.raises(NotImplementedError, match="histories that share rows of x need the native library"):
        recurrence.fallback(*arguments_of(leaves, "augru", x_start=torch.arange(5)))
    wrong = leaves | {"weight_ih": leaves["weight_ih"][:, :2]}
    with pytest.raises(ValueError, match=r"x must have shape \(\*, \*, 2\), got \(5, 7, 3\)"):
        recurrence.fallback(*arguments_of(wrong, "augru"))
    arguments = list(arguments_of(leaves, "augru"))
    arguments[7] = torch.tensor([8, 0, 4, 7, 2])
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 7\], got \[0, 8\]"):
        recurrence.fallback(*arguments)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["prelu", "dice", "relu", "sigmoid", "linear"])
def test_scores(inputs, activation, training):
    keys, query = inputs
    layer = Interest(8, att_activation=activation).double().train(training)
    layers, _ = native_layers(layer.attention)
    arguments = (layers.parameters, layers.running, None, 9, layers.layers, layers.epsilons, 0.0, training, False)
    starts = [None] if training else [None, torch.tensor([7, 0, 2])]
    for start in starts:
        got = attention_scores.fallback(query, keys, OFFSETS, start, *arguments)
        want = torch.ops.dien_fast.attention_scores(query, keys, OFFSETS, start, *arguments)
        torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-13)
        if training:
            torch.testing.assert_close(got[1], want[1], rtol=1e-12, atol=1e-13)


def test_dropout_keeps_its_share(inputs):
    keys, query = inputs
    layer = Interest(8, att_activation="relu", att_dropout=0.5).double()
    layers, _ = native_layers(layer.attention)
    rest = (layers.layers, layers.epsilons, 0.5, True, False)
    seeds = [torch.tensor([number]) for number in (3, 3, 4)]
    first, again, other = (
        attention_scores.fallback(query, keys, OFFSETS, None, layers.parameters, [], seed, 9, *rest)[0]
        for seed in seeds
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_auxiliary_loss(inputs):
    keys, _ = inputs
    parameters = Interest(8, use_negsampling=True).double().auxiliary_net._native_parameters()
    got = auxiliary_loss.fallback(keys, keys.flip(0), -keys, OFFSETS, parameters, False)[0]
    want = torch.ops.dien_fast.auxiliary_loss(keys, keys.flip(0), -keys, OFFSETS, parameters, False)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_rows(inputs):
    keys, _ = inputs
    padded = rows.plain_padded_from_rows(keys, OFFSETS, 8)
    assert torch.equal(padded, torch.ops.dien_fast.padded_from_rows(keys, OFFSETS, 8))
    assert torch.equal(rows.plain_rows_from_padded(padded, OFFSETS), keys)
    got = rows.plain_weighted_sum(keys, keys[:, 0], OFFSETS)
    torch.testing.assert_close(got, torch.ops.dien_fast.weighted_sum(keys, keys[:, 0].contiguous(), OFFSETS))
