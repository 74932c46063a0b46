"""Any call of attention_gru: the native kernels give the reference's numbers, or both refuse it alike.

The normal run draws the same 300 cases each time. By hand more, and other cases each time::

    DIEN_FAST_HYPOTHESIS=10000 python -m pytest tests/ops/test_operator_hypothesis.py
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from comparison import shares_of_allowed_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dien_fast
from dien_fast.functional import GATES, attention_gru
from dien_fast.ops import attention_gru as operator

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)

CASES = int(os.environ.get("DIEN_FAST_HYPOTHESIS", 100))
MOST_FIXED = 300  # so many cases are the same each time
SIZES = {"padded": "lengths", "ragged": "offsets", "packed": "batch_sizes"}
TENSORS = ("x", "att", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0")
# The error may be twice that of the eager loop plus 8 eps. Where numbers nearly cancel, or attention outside of
# [0, 1] lets states grow from step to step, a single rounding dominates, and the eager loop's may be small by
# luck. So one case in a thousand breaks the rule, by a factor of 3.6 at most in 10,000 cases. Such a case is drawn
# again with other numbers, to tell luck from an inexact kernel. Measured, the error is on average at most 0.42 of
# what is allowed, and 5.3 times what is allowed in the worst of 200 draws.
REDRAWN = 30
STRIDES = ("plain", "gaps", "transposed", "offset")


@dataclass
class Case:
    """One call; the numbers come from the seed."""

    layout: str
    cell: str
    dtype: torch.dtype
    lengths: list[int]
    steps: int  # T, the width of the padding
    inputs: int
    hidden: int
    missing: set[str]  # optional tensors that are not given
    wide: set[str]  # which of att and h0 are float32 beside a 16-bit x
    wanted: set[str]  # tensors that require a gradient
    strides: dict[str, str]
    integer: torch.dtype
    return_states: bool
    save_gates: bool
    poisoned: bool  # whether padding is NaN
    seed: int
    fault: str | None


def size(smallest, most=40):
    """Mostly small sizes, because faults are mostly at the edges."""
    return st.one_of(st.integers(smallest, min(5, most)), st.integers(smallest, most))


def subset(names):
    return st.sets(st.sampled_from(sorted(names)))


@st.composite
def cases(draw):
    steps = draw(size(0))
    lengths = draw(st.lists(st.integers(0, steps), max_size=draw(size(0))))
    layout, cell = draw(st.sampled_from(sorted(SIZES))), draw(st.sampled_from(sorted(GATES)))
    largest = sum(lengths) if layout == "ragged" else max([*lengths, len(lengths)], default=0)
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    case = Case(
        layout=layout,
        cell=cell,
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])),
        lengths=lengths,
        steps=steps,
        inputs=draw(size(0)),
        hidden=draw(size(1)),
        missing=draw(subset({"bias_ih", "bias_hh", "h0", *(["att"] if cell == "gru" else [])})),
        wide=draw(subset({"att", "h0"})),
        wanted=draw(st.one_of(st.just(set(TENSORS)), subset(TENSORS))),
        strides={name: draw(st.sampled_from(STRIDES)) for name in (*TENSORS, "sizes", "gradient")},
        integer=draw(st.sampled_from([kind for kind in integers if torch.iinfo(kind).max >= largest])),
        return_states=draw(st.booleans()),
        save_gates=draw(st.booleans()),
        poisoned=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
        fault=None,
    )
    if draw(st.integers(0, 9)) == 9:
        case.fault = draw(st.sampled_from(sorted(faults(case))))
    return case


def faults(case):
    """The faults that a case can have: name, and the error that both backends must raise."""
    sizes = SIZES[case.layout]
    known = {
        "x is wider": (ValueError, "x must have shape"),
        "x has another dimension": (ValueError, "x must have shape"),
        "x is an integer": (TypeError, "x must have a floating-point dtype|weight_ih must have the dtype of x"),
        "weight_ih has another row": (ValueError, "weight_ih must have shape"),
        "weight_hh has another row": (ValueError, "weight_hh must have shape"),
        "weight_hh is empty": (ValueError, "weight_hh must have at least one column"),
        "weight_hh has another dtype": (TypeError, "weight_hh must have the dtype of x"),
        "bias_hh has another row": (ValueError, "bias_hh must have shape"),
        "bias_ih has another dtype": (TypeError, "bias_ih must have the dtype of x"),
        "h0 is wider": (ValueError, "h0 must have shape"),
        "h0 has another dtype": (TypeError, "h0 must have the dtype of x"),
        "att has another row": (ValueError, "att must have shape"),
        "att is an integer": (TypeError, "att must have the dtype of x"),
        "sizes are floats": (TypeError, f"{sizes} must have an integer dtype"),
        "sizes have two dimensions": (ValueError, f"{sizes} must have shape"),
        "sizes has another entry": (ValueError, f"{sizes} must"),
        "no layout": (ValueError, "exactly one of lengths, offsets and batch_sizes must be given"),
        "two layouts": (ValueError, "exactly one of lengths, offsets and batch_sizes must be given"),
        "unknown cell": (ValueError, "cell must be one of"),
    }
    if case.cell != "gru":
        known["no att"] = (ValueError, "att must be given for cell")
    if case.layout != "packed":
        known["h0 has another row"] = (ValueError, "h0 must have shape")
    if sum(case.lengths):
        known["a size is too large"] = (ValueError, f"{sizes} must")
        known["a size is too small"] = (ValueError, f"{sizes} must")
    return known


def strided(value, how):
    """The same numbers, laid out differently."""
    if how == "gaps":
        return torch.stack([value, value], dim=-1)[..., 0]
    if how == "transposed":
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "offset":
        return torch.cat([value.flatten()[:1], value.flatten()])[min(1, value.numel()) :].view(value.shape)
    return value


def arguments(case):
    """The arguments of the case, without its fault."""
    batch, rows = len(case.lengths), GATES[case.cell] * case.hidden
    generator = torch.Generator().manual_seed(case.seed)
    values = {}
    # Scaled so that the recurrence is not chaotic, although attention outside of [0, 1] still lets states grow.
    for name, shape, scale in (
        ("x", (batch, case.steps, case.inputs), 1.0),
        ("att", (batch, case.steps), 1.0),
        ("weight_ih", (rows, case.inputs), max(case.inputs, 1) ** -0.5),
        ("weight_hh", (rows, case.hidden), 0.6 * case.hidden**-0.5),
        ("bias_ih", (rows,), 1.0),
        ("bias_hh", (rows,), 1.0),
        ("h0", (batch, case.hidden), 1.0),
    ):
        dtype = torch.promote_types(case.dtype, torch.float32) if name in case.wide else case.dtype
        values[name] = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    lengths = torch.tensor(case.lengths, dtype=torch.int64)
    if case.layout == "packed":
        lengths, order = lengths.sort(descending=True, stable=True)
        values |= {name: values[name][order] for name in ("x", "att", "h0")}
    mask = torch.arange(case.steps) < lengths.unsqueeze(1)
    if case.layout == "padded":
        sizes = lengths
        if case.poisoned:
            values |= {name: values[name].index_put((~mask,), torch.tensor(torch.nan)) for name in ("x", "att")}
    elif case.layout == "ragged":
        sizes = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        values |= {name: values[name][mask] for name in ("x", "att")}
    else:
        sizes = mask.sum(0)[: max(case.lengths, default=0)]
        values |= {name: values[name].transpose(0, 1)[mask.T] for name in ("x", "att")}
    for name in TENSORS:
        leaf = strided(values[name], case.strides[name]).detach().requires_grad_(name in case.wanted)
        values[name] = None if name in case.missing else leaf
    sizes = strided(sizes.to(case.integer), case.strides["sizes"])
    return values | {SIZES[case.layout]: sizes, "cell": case.cell, "return_states": case.return_states}


def spoil(case, given):
    """The arguments with the fault of the case."""
    given, sizes = dict(given), SIZES[case.layout]
    with torch.no_grad():
        name, _, what = (case.fault.replace("sizes", sizes)).partition(" ")
        value = given.get(name)
        if value is None and name in TENSORS:
            width = {"h0": (len(case.lengths), case.hidden)}
            shape = given["x"].shape[:-1] if name == "att" else width.get(name, (given["weight_hh"].size(0),))
            value = torch.zeros(shape, dtype=case.dtype)
        if what == "is wider" or (what == "has another row" and name == "att"):
            given[name] = torch.cat([value, value.new_zeros(*value.shape[:-1], 1)], dim=-1)
        elif what in ("has another row", "has another entry"):
            given[name] = torch.cat([value, value.new_ones(1, *value.shape[1:]) - 2])
        elif what in ("has another dimension", "have two dimensions"):
            given[name] = value.unsqueeze(-1)
        elif what == "is an integer":
            given[name] = value.nan_to_num().to(torch.int64)
        elif what == "are floats":
            given[name] = value.float()
        elif what == "has another dtype":
            other = torch.float32 if case.dtype == torch.float64 else torch.float64
            given[name] = value.to(torch.int64 if name == "h0" else other)
        elif what == "is empty":
            given[name] = value[:0, :0]
        elif what == "layout":
            del given[sizes]
        elif case.fault == "two layouts":
            given["offsets" if sizes == "lengths" else "lengths"] = given[sizes]
        elif case.fault == "unknown cell":
            given["cell"] = "lstm"
        elif case.fault == "no att":
            given["att"] = None
        else:
            changed = given[sizes].long()
            place = 0 if case.layout == "packed" else -1
            changed[place] = max(case.steps, int(changed[place])) + 1 if "large" in case.fault else -1
            given[sizes] = changed
    return given


def run(backend, case, given):
    """States, last states and every gradient, by name."""
    limit = 10**9 if case.save_gates else 0
    with dien_fast.use_backend(backend), mock.patch.object(operator, "SAVED_GATES_LIMIT", limit):
        states, last = attention_gru(**given)
        assert (states is not None) == case.return_states
        found = {name: value for name, value in (("states", states), ("last", last)) if value is not None}
        wanted = {name: given[name] for name in TENSORS if given[name] is not None and name in case.wanted}
        if not wanted:
            return found
        generator = torch.Generator().manual_seed(case.seed + 1)
        loss = 0
        for value in found.values():
            weight = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
            loss = loss + (value * strided(weight, case.strides["gradient"])).sum()
        if not loss.requires_grad:  # no history has a step, and only steps use the tensors that require a gradient
            loss = loss + sum(0 * value.sum() for value in wanted.values())
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return found | {f"gradient of {name}": value for name, value in zip(wanted, gradients, strict=True)}


def refusal(backend, given):
    with dien_fast.use_backend(backend):
        try:
            attention_gru(**given)
        except (ValueError, TypeError) as error:
            return type(error), str(error)
    return None


def compare(case):
    """Check one case."""
    given = arguments(case)
    if case.fault is not None:
        given = spoil(case, given)
        kind, message = faults(case)[case.fault]
        got = refusal("native", given)
        assert got is not None, f"accepted although {case.fault}"
        assert got == refusal("reference", given)
        assert got[0] is kind, got
        assert re.match(message, got[1]), got
        return
    if case.dtype == torch.float64:
        native, eager = both(case, given)
        for name, value in eager.items():  # the worst of 3,000 cases is 4e-14 of the largest number
            largest = value.abs().max().item() if value.numel() else 0.0
            torch.testing.assert_close(native[name], value, rtol=0, atol=1e-12 * max(1.0, largest), msg=name)
        return
    too_large = [name for name, share in shares(case, given).items() if not share <= 1]
    if too_large:
        draws = [replace(case, seed=case.seed + k) for k in range(REDRAWN)]
        again = [shares(draw, arguments(draw)) for draw in draws]
        for name in too_large:
            found = [draw[name] for draw in again if name in draw]
            assert max(found) <= 10, (name, found)
            assert sum(found) <= len(found), (name, found)


def both(case, given):
    """Return the results of the native kernels and of the eager loop."""
    native, eager = (run(backend, case, given) for backend in ("native", "reference"))
    assert native.keys() == eager.keys()
    for name, value in native.items():
        assert (value.shape, value.dtype) == (eager[name].shape, eager[name].dtype), name
    return native, eager


def shares(case, given):
    """Return each result's share of the allowed error, without results beyond the range of float16."""
    exact = {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in given.items()
    }
    exact = run("reference", case, exact)
    within = torch.finfo(case.dtype).max / 2
    exact = {name: value for name, value in exact.items() if not (value.abs() > within).any()}
    return shares_of_allowed_error(*both(case, given), exact)


def example(layout):
    """A case of three histories, one of them empty, without a fault."""
    plain = dict.fromkeys((*TENSORS, "sizes", "gradient"), "plain")
    return Case(
        layout,
        "augru",
        torch.float32,
        [2, 0, 3],
        4,
        3,
        5,
        set(),
        set(),
        set(),
        plain,
        torch.int64,
        True,
        True,
        False,
        0,
        None,
    )


@pytest.mark.parametrize(
    ("layout", "fault"), [(layout, name) for layout in SIZES for name in faults(example(layout))]
)
def test_every_fault_is_refused(layout, fault):
    """Generated cases draw from these combinations and may miss some, so each runs once here."""
    case = example(layout)
    case.fault = fault
    compare(case)


@pytest.mark.parametrize("count", [CASES, pytest.param(3 * CASES, marks=pytest.mark.slow)])
def test_native_equals_reference_or_both_refuse(count):
    counts = Counter()

    @settings(
        max_examples=count,
        derandomize=count <= MOST_FIXED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def check(case):
        counts["compared" if case.fault is None else case.fault] += 1
        compare(case)

    check()
    total = sum(counts.values())
    print(f"{counts['compared']} of {total} cases compared; refused: {dict(counts)}")
    assert total >= count
    assert counts["compared"] >= 0.8 * total, counts
