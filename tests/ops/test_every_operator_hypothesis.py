"""Any call of any native operator: an error, or numbers that depend on nothing but its arguments.

Each call is made twice, with other numbers in the memory around its tensors. A kernel that reads or writes outside
of a tensor gives other numbers, or leaves its mark. Under ``make sanitize`` such an access also ends the process.
"""

import os

import pytest
import torch
from campaign import Tally, amounts, bounded, campaign
from hypothesis import given
from hypothesis import strategies as st
from operator_calls import CALLS, MARGIN, changed, guarded, in_bytes

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)

ERRORS = (RuntimeError, TypeError, ValueError, IndexError)
WITHOUT_CALLS = {"cpu_capability", "vector_bytes"}


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@st.composite
def calls(draw, name):
    """The arguments of a call, some of them changed."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    arguments = CALLS[name](draw)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(arguments) - 1))
        arguments[place] = changed(draw, arguments[place])
    return arguments


def outcome(name, arguments, fill):
    """What a call returns and what it leaves of its arguments; or None where it raises an error."""
    pairs = [guarded(value, fill) for value in arguments]
    memories = [memory for _, found in pairs for memory in found]
    before = [memory.clone() for memory in memories]
    with bounded(memory=1 << 30), torch.no_grad():
        try:
            found = getattr(torch.ops.dien_fast, name)(*(value for value, _ in pairs))
        except ERRORS:
            return None
    for memory, old in zip(memories, before, strict=True):
        for margin in (slice(None, MARGIN), slice(len(memory) - MARGIN, None)):
            assert in_bytes(memory[margin]) == in_bytes(old[margin]), "written outside of a tensor"
    return in_bytes(found), [in_bytes(value) for value, _ in pairs if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", sorted(CALLS))
@amounts(quick=15, slow=5000)
def test_any_call_is_refused_or_reads_its_arguments_alone(count, name):
    tally = Tally(f"calls of {name}")

    @campaign(count)
    @given(calls(name))
    def check(arguments):
        found = outcome(name, arguments, 3.0)
        tally["refused" if found is None else "right"] += 1
        assert outcome(name, arguments, 1e4) == found

    check()
    tally.check()


def test_every_operator_is_called():
    registered = {
        name.removeprefix("dien_fast::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("dien_fast::")
    }
    assert {name.partition(".")[0] for name in registered} - WITHOUT_CALLS == CALLS.keys()
