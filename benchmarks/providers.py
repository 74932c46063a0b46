"""The ways to compute the recurrence and the interest layer that the benchmarks compare.

Each function here makes the inputs of one size, checks that all providers of the same function agree, results
and gradients, and returns what to time. Lengths are ragged (uniform in [T / 4, T], seed 0, one of them T) unless
dense. Inputs and weights rotate between rounds.

    reference loop          reference.DynamicGRU: a Python loop over steps, the article's way
    scripted loop           reference.gru.attention_gru, the loop of the fallback, under torch.jit.script
    torch.compile loop      the same under torch.compile, for this one pattern of lengths
    nn.GRU packed, padded   another function, without attention: what torch itself can do with such a batch
    oneDNN                  lbr_augru of oneDNN 3.2, the cell ``augru_official``, on padded input, the reorder of
                            its weights included; its gradients are wrong, so its backward is timed, not checked
    dien-fast               DynamicGRU on packed rows; against oneDNN the function on ragged rows
    dien-fast, recomputing  the same with the backward that computes the gates again instead of keeping them
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from onednn import OneDnnAugru
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import dien_fast
from dien_fast import reference
from dien_fast.functional import attention_gru
from dien_fast.ops import attention_gru as _ops
from dien_fast.reference.gru import attention_gru as packed_loop

Size = tuple[int, int, int]  # B, T, H
# Takes the number of the round; returns the states, and behind them the gradients where they are asked for.
Run = Callable[[int], list[Tensor]]

SIZES: list[Size] = [(128, 50, 32), (256, 100, 36), (1024, 100, 64), (64, 1000, 64), (1, 50, 32)]
WIDE_SIZES: list[Size] = [(64, 50, 512), (64, 50, 768)]
COMPILED_SIZE: Size = (128, 50, 32)
# For the comparison with oneDNN, and for rates.
DENSE_SIZES: list[Size] = [
    (128, 20, 16),
    (1024, 50, 32),
    (256, 100, 36),
    (1024, 100, 64),
    (256, 200, 128),
    (64, 1000, 64),
    (1, 50, 32),
]
RECURRENCE = ("reference loop", "scripted loop", "nn.GRU packed", "nn.GRU padded", "dien-fast")
VARIANTS = 3


@dataclass
class Contest:
    """Providers of one size that have passed the check.

    Attributes:
        runs: by name.
        steps: N, the valid steps of the batch.
        compile_seconds: what torch.compile took, where it takes part.
    """

    runs: dict[str, Run]
    steps: int
    compile_seconds: float | None = None


def lengths_of(batch: int, steps: int) -> Tensor:
    lengths = torch.randint(steps // 4, steps + 1, (batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = steps
    return lengths


@contextmanager
def recomputing() -> Iterator[None]:
    """Make backward compute the gates again, whatever the size."""
    limit, _ops.SAVED_GATES_LIMIT = _ops.SAVED_GATES_LIMIT, 0
    try:
        yield
    finally:
        _ops.SAVED_GATES_LIMIT = limit


def assert_agree(name: str, got: list[Tensor], want: list[Tensor], share: float = 1e-4) -> None:
    """Raise unless the states are close, and the error of every gradient is below ``share`` of it, in norm."""
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")
    for position, (found, expected) in enumerate(zip(got[1:], want[1:], strict=True)):
        error, size = (found - expected).norm().item(), expected.norm().item()
        if not error <= share * size:
            raise AssertionError(f"{name}: gradient {position} has norm {size:.3g} and is off by {error:.3g}")


def results(states: Tensor, leaves: list[Tensor], backward: bool) -> list[Tensor]:
    """Return the states and, for backward, the gradients of ``leaves`` of the states' sum."""
    gradients = torch.autograd.grad(states, leaves, torch.ones_like(states)) if backward else ()
    return [states.detach(), *gradients]


def recurrence(size: Size, backward: bool, compiled: bool = False) -> Contest:
    """Set up the providers of AUGRU on packed rows, and nn.GRU."""
    batch, steps, hidden = size
    torch.manual_seed(0)
    lengths = lengths_of(batch, steps)
    eager = [reference.DynamicGRU(hidden, hidden, gru_type="AUGRU") for _ in range(VARIANTS)]
    native = [dien_fast.DynamicGRU(hidden, hidden, gru_type="AUGRU") for _ in range(VARIANTS)]
    torch_gru = [nn.GRU(hidden, hidden, batch_first=True) for _ in range(VARIANTS)]
    for one, other in zip(native, eager, strict=True):
        one.load_state_dict(other.state_dict())
    padded = [torch.randn(batch, steps, hidden).requires_grad_() for _ in range(VARIANTS)]

    def pack(value: Tensor) -> PackedSequence:
        return pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=False)

    inputs = [(pack(x), pack(torch.rand(batch, steps))) for x in padded]
    sizes, initial = inputs[0][0].batch_sizes.tolist(), torch.zeros(batch, hidden)

    def run_module(modules: list[Any], number: int, attention: bool = True) -> list[Tensor]:
        module, (x, att) = modules[number % VARIANTS], inputs[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            states = module(x, att) if attention else module(x)[0]
            return results(states.data, [x.data, *module.parameters()], backward)

    def run_padded(number: int) -> list[Tensor]:
        module, x = torch_gru[number % VARIANTS], padded[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            return results(module(x)[0], [x, *module.parameters()], backward)

    def run_loop(loop: Callable[..., tuple[Tensor, Tensor]], number: int) -> list[Tensor]:
        parameters, (x, att) = list(eager[number % VARIANTS].parameters()), inputs[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            states, _ = loop(x.data, att.data, *parameters, initial, sizes, "augru", False)
            return results(states, [x.data, *parameters], backward)

    script = torch.jit.script(packed_loop)
    runs: dict[str, Run] = {
        "reference loop": lambda number: run_module(eager, number),
        "scripted loop": lambda number: run_loop(script, number),
        "nn.GRU packed": lambda number: run_module(torch_gru, number, attention=False),
        "nn.GRU padded": run_padded,
        "dien-fast": lambda number: run_module(native, number),
    }
    contest = Contest(runs, len(inputs[0][0].data))
    if compiled:
        torch._inductor.config.force_disable_caches = True  # an earlier run's code would hide the compile time
        unrolled = torch.compile(packed_loop, dynamic=False)
        runs["torch.compile loop"] = lambda number: run_loop(unrolled, number)
        begin = time.perf_counter()
        runs["torch.compile loop"](0)
        contest.compile_seconds = round(time.perf_counter() - begin, 1)
    want = runs["reference loop"](0)
    for name, run in runs.items():
        if not name.startswith("nn.GRU"):
            assert_agree(name, run(0), want)
    return contest


def against_onednn(size: Size, backward: bool, dense: bool) -> Contest:
    """Set up oneDNN and dien-fast, on the cell ``augru_official``."""
    batch, steps, hidden = size
    torch.manual_seed(0)
    lengths = torch.full((batch,), steps) if dense else lengths_of(batch, steps)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    valid = torch.arange(steps) < lengths.unsqueeze(1)
    cells = [dien_fast.AttentionUpdateGateGRUCell(hidden, hidden) for _ in range(VARIANTS)]
    weights = [list(cell.parameters()) for cell in cells]
    inputs = [(torch.randn(batch, steps, hidden), torch.rand(batch, steps)) for _ in range(VARIANTS)]
    rows = [(x[valid].requires_grad_(), att[valid].requires_grad_()) for x, att in inputs]
    major = [(x.transpose(0, 1).contiguous(), att.t().contiguous()) for x, att in inputs]
    onednn = OneDnnAugru(steps, batch, hidden, backward)

    def run_native(number: int) -> list[Tensor]:
        (x, att), parameters = rows[number % VARIANTS], weights[number % VARIANTS]
        with torch.set_grad_enabled(backward):
            states, _ = attention_gru(x, att, *parameters, offsets=offsets, cell="augru_official")
            assert states is not None
            return results(states, [x, att, *parameters], backward)

    def run_recomputing(number: int) -> list[Tensor]:
        with recomputing():
            return run_native(number)

    def run_onednn(number: int) -> list[Tensor]:
        (x, att), parameters = major[number % VARIANTS], weights[number % VARIANTS]
        states = onednn.forward(x, att, *parameters)
        if backward:
            onednn.backward(x, att, parameters[0], parameters[1], torch.ones_like(states))
        return [states]

    runs: dict[str, Run] = {"oneDNN": run_onednn, "dien-fast": run_native}
    if backward and dense:
        runs["dien-fast, recomputing"] = run_recomputing
    with dien_fast.use_backend("reference"):
        want = run_native(0)
    assert_agree("oneDNN", [run_onednn(0)[0].transpose(0, 1)[valid]], want[:1])
    for name, run in runs.items():
        if name != "oneDNN":
            assert_agree(name, run(0), want)
    return Contest(runs, len(rows[0][0]))


def interest(size: Size) -> Contest:
    """Set up the interest layer with its auxiliary loss, in training mode, forward and backward."""
    batch, steps, hidden = size
    torch.manual_seed(0)
    lengths = lengths_of(batch, steps)
    valid = (torch.arange(steps) < lengths.unsqueeze(1)).unsqueeze(-1)
    eager = [reference.Interest(hidden, use_negsampling=True) for _ in range(VARIANTS)]
    native = [dien_fast.Interest(hidden, use_negsampling=True) for _ in range(VARIANTS)]
    for one, other in zip(native, eager, strict=True):
        one.load_state_dict(other.state_dict())
    inputs = [
        tuple(
            value.requires_grad_()
            for value in (
                torch.randn(batch, hidden),
                torch.randn(batch, steps, hidden) * valid,
                torch.randn(batch, steps, hidden) * valid,
            )
        )
        for _ in range(VARIANTS)
    ]

    def run(modules: list[Any], number: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        module = modules[number % VARIANTS]
        query, keys, negatives = (value.to(dtype) for value in inputs[number % VARIANTS])
        output, loss = module(query, keys, lengths, negatives)
        gradients = torch.autograd.grad(output.sum() + loss, [query, keys, negatives, *module.parameters()])
        return [output.detach(), loss.detach(), *gradients]

    runs: dict[str, Run] = {
        "reference loop": lambda number: run(eager, number),
        "dien-fast": lambda number: run(native, number),
    }
    # The inputs' gradients are compared, with float64's: biases before batch normalisation have gradients of
    # rounding noise, and the loop's own in float32 are off by 1e-2. An input of an activation that rounds to the
    # other side of 0 changes its history's gradient: dien-fast's worst is 6e-4 of the norm, at (1024, 100, 64).
    want = run([copy.deepcopy(eager[0]).double()] * VARIANTS, 0, torch.float64)
    got = runs["dien-fast"](0)
    assert_agree("dien-fast", [value.double() for value in got[:5]], want[:5], share=2e-3)
    return Contest(runs, int(lengths.sum()))
