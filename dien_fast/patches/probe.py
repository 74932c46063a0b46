"""Finds out what a cell computes by running a copy of it.

Names do not tell: the widespread listing prints AUGRU twice, with two orders of gates under the same names, and
prediction-flow's cell has these names with the inverted rule. So a copy of the cell, in float64 with random
weights and without hooks, runs on random input, forward and backward, and must agree with exactly one rule and
order of gates.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from dien_fast.ops.attention_gru import LIBRARY, use_backend
from dien_fast.patches.cells import LAYOUTS, CellRule, Stacked, layout_of
from dien_fast.patches.swap import Recipe, swap
from dien_fast.reference.gru import replaced_share

TOLERANCE = 1e-12  # of the largest number; float64 rounding of these sizes is below 1e-14
_SEED = 20180911


class RefusedError(Exception):
    """Something is left as it is; the message is the reason."""


@contextmanager
def _undisturbed() -> Iterator[torch.Generator]:
    """Compute plainly, whatever context the caller is in, and leave the caller's random numbers alone."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {"cpu", torch.get_default_device().type}:
            if device != "meta":
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(_Float64Factories())
        yield torch.Generator("cpu").manual_seed(_SEED)


def random_copy(module: nn.Module, generator: torch.Generator, scale: float = 0.7) -> Any:
    """Return a copy in float64 on the CPU, without hooks, whose parameters are random; what is tied stays tied.

    Trained weights may be nearly zero, and would then not tell one rule from another.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        value = torch.empty(parameter.shape, dtype=torch.float64, device="cpu")
        value.uniform_(-scale, scale, generator=generator)
        memo[id(parameter)] = nn.Parameter(value)
    for buffer in module.buffers():
        if not buffer.is_floating_point():
            memo[id(buffer)] = (
                torch.empty_like(buffer, device="cpu").zero_() if buffer.is_meta else buffer.cpu().clone()
            )
        elif buffer.is_meta:
            memo[id(buffer)] = torch.ones(buffer.shape, dtype=torch.float64, device="cpu")
        else:
            memo[id(buffer)] = buffer.detach().to("cpu", torch.float64).clone()
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        for name in _HOOKS:
            getattr(part, name).clear()
    return twin


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def largest_difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest difference of two lists of tensors, as a share of the largest number of each."""
    worst = 0.0
    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape:
            return float("inf")
        if theirs.numel():
            size = max(float(theirs.abs().max()), 1.0)
            worst = max(worst, float((ours - theirs).abs().max()) / size)
    return worst if worst == worst else float("inf")


def gradients_of(out: Tensor, leaves: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return the gradients of a fixed random sum of ``out``, zeros where there are none."""
    weight = torch.empty(out.shape, dtype=torch.float64, device="cpu").uniform_(-1, 1, generator=generator)
    loss = (out * weight).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def _candidates(blocks: int) -> Iterator[CellRule]:
    """Every rule and order of gates that a cell with so many blocks of rows can have."""
    for reset in ("after", "before"):
        for take in itertools.permutations(range(blocks), 2):
            yield CellRule("agru", take, blocks, reset)
        if blocks == 3:
            for cell in ("augru", "augru_official", "augru_inverted", "gru"):
                for order in itertools.permutations(range(3)):
                    yield CellRule(cell, order, blocks, reset)


class _OneStep:
    """The rules' step of B histories from a cell's weights, each product of two matrices computed once."""

    def __init__(self, weights: Stacked, blocks: int, x: Tensor, h: Tensor) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        self.h = h
        self.from_x = F.linear(x, weight_ih, bias_ih).chunk(blocks, 1)
        self.from_h = F.linear(h, weight_hh, bias_hh).chunk(blocks, 1)
        self.weights = weight_hh.chunk(blocks)
        self.biases = [None] * blocks if bias_hh is None else bias_hh.chunk(blocks)
        self.reset_first: dict[tuple[int, int], Tensor] = {}

    def run(self, rule: CellRule, att: Tensor) -> Tensor:
        """Return the states ``[B, H]`` after a step with attention ``[B]``."""
        *first, n_block = rule.take
        r_block, u_block = first[-1], first[0]
        if rule.cell == "gru":
            r_block, u_block = u_block, r_block
        r = torch.sigmoid(self.from_x[r_block] + self.from_h[r_block])
        u = torch.sigmoid(self.from_x[u_block] + self.from_h[u_block])
        if rule.reset == "after":
            inner = r * self.from_h[n_block]
        else:
            if (r_block, n_block) not in self.reset_first:
                product = F.linear(r * self.h, self.weights[n_block], self.biases[n_block])
                self.reset_first[r_block, n_block] = product
            inner = self.reset_first[r_block, n_block]
        n = torch.tanh(self.from_x[n_block] + inner)
        a = att.unsqueeze(1)
        z = a if rule.cell == "agru" else replaced_share(rule.cell, u, a)
        return self.h + z * (n - self.h)


def _cell_input(inputs: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, h and attention of 12 rows: small and saturating numbers, attention inside and outside [0, 1]."""
    x, h, att = (uniform(generator, *shape).detach() for shape in ((12, inputs), (12, hidden), (12,)))
    x[6:9] *= 30 / max(inputs, 1) ** 0.5
    h[9:] *= 3
    att[4:] = att[4:].abs()
    att[:4] = torch.tensor([0.0, 1.0, -0.8, 2.5], dtype=torch.float64)
    return x.requires_grad_(), h.requires_grad_(), att.requires_grad_()


def rule_of(cell: nn.Module) -> CellRule:
    """Return what a cell computes.

    Args:
        cell: a module with one of the layouts of :mod:`dien_fast.patches.cells`, without hooks.

    Returns:
        The one rule and order of gates that agrees with a copy of the cell to 1e-12, forward and backward.

    Raises:
        RefusedError: if none agrees, more than one, or one for which there is no kernel.
    """
    name = layout_of(cell)
    if name is None:
        held = [key for key, _ in cell.named_parameters()]
        raise RefusedError(
            f"its cell {type(cell).__name__} must have weight_ih, weight_hh, bias_ih and bias_hh, or x2h and h2h, "
            f"or Wu to bh, and nothing else that computes; it has {', '.join(held) or 'no parameters'}"
        )
    layout = LAYOUTS[name]
    with _undisturbed() as generator:
        try:
            twin = random_copy(cell, generator)
            weights = layout.stacked(twin)
        except Exception as error:
            raise RefusedError(f"its cell {type(cell).__name__} cannot be copied: {_said(error)}") from error
        hidden = weights[1].size(1)
        blocks, rest = divmod(weights[1].size(0), max(hidden, 1))
        if rest or blocks not in (2, 3) or weights[0].size(0) != weights[1].size(0):
            raise RefusedError(
                f"its cell {type(cell).__name__} must have 2 or 3 gates of {hidden} rows, "
                f"got weights {tuple(weights[0].shape)} and {tuple(weights[1].shape)}"
            )
        x, h, att = _cell_input(weights[0].size(1), hidden, generator)
        leaves = [x, h, att, *twin.parameters()]
        outcomes = []
        for training in (True, False):
            twin.train(training)
            try:
                outcomes.append(layout.step(twin, x, h, att))
            except Exception as error:
                raise RefusedError(
                    f"a copy of its cell {type(cell).__name__} in float64 raises {_said(error)}"
                ) from error
        state = generator.get_state()
        backward = gradients_of(outcomes[0], leaves, generator)
        step = _OneStep(weights, blocks, x, h)
        matches = []
        for rule in _candidates(blocks):
            out = step.run(rule, att)
            if any(largest_difference([theirs.detach()], [out.detach()]) > TOLERANCE for theirs in outcomes):
                continue
            generator.set_state(state)
            if largest_difference(backward, gradients_of(out, leaves, generator)) <= TOLERANCE * 1e2:
                matches.append(rule)
    if len(matches) != 1:
        found = "none" if not matches else " and ".join(map(str, matches))
        raise RefusedError(
            f"its cell {type(cell).__name__} was compared with the rules augru, augru_official, augru_inverted, "
            f"agru and gru in every order of gates, forward and backward; {found} agrees to {TOLERANCE:g}"
        )
    (rule,) = matches
    if rule.reset == "before" or rule.cell == "gru":
        raise RefusedError(
            f"its cell {type(cell).__name__} computes {rule}, for which there is no kernel with attention"
        )
    return rule


def check_same(
    module: nn.Module, recipe: Recipe, inputs: Callable[[torch.Generator], list[tuple[Any, ...]]], tolerance: float
) -> None:
    """Raise unless the class that a recipe makes of a module computes what its own class does.

    Copies of both run in float64 with random weights, in training and evaluation, forward and backward.

    Args:
        module: the module.
        recipe: its new class.
        inputs: draws the arguments of calls.
        tolerance: how far outputs, gradients and buffers may be apart, as a share of the largest number.

    Raises:
        RefusedError: if they differ, or the module's own class raises.
    """
    native = use_backend("native" if LIBRARY.exists() else "reference")
    with _undisturbed() as generator, native:
        for training in (True, False):
            found = []
            for fast in (False, True):
                generator.manual_seed(_SEED)
                torch.default_generator.manual_seed(_SEED)  # what dropouts draw from; put back afterwards
                try:
                    twin = random_copy(module, generator)
                    twin.train(training)
                    if fast:
                        swap(twin, recipe)
                    found.append(_outcome(twin, inputs(generator), generator))
                except Exception as error:
                    kind = "its new class" if fast else "a copy of it"
                    raise RefusedError(f"{kind} raises {_said(error)}") from error
            (theirs, their_text), (ours, our_text) = found
            apart = float("inf") if their_text != our_text else largest_difference(ours, theirs)
            if apart > tolerance:
                mode = "training" if training else "evaluation"
                raise RefusedError(
                    f"a copy of it computes something else in {mode}, by {apart:.1e} of the largest number"
                )


def _outcome(
    twin: nn.Module, calls: list[tuple[Any, ...]], generator: torch.Generator
) -> tuple[list[Tensor], list[str]]:
    """Run calls; return every number of outputs, gradients and buffers, and the structure of the outputs."""
    numbers: list[Tensor] = []
    structure: list[str] = []
    for arguments in calls:
        outputs: list[Tensor] = []
        structure.append(_flatten(twin.forward(*arguments), outputs))
        given: list[Tensor] = []
        _flatten(arguments, given)
        leaves = [value for value in (*given, *twin.parameters()) if value.requires_grad]
        flat = torch.cat([value.double().flatten() for value in outputs])
        numbers += [value.detach().double() for value in outputs]
        numbers += gradients_of(flat, leaves, generator)
    numbers += [buffer.double() for buffer in twin.buffers()]
    return numbers, structure


def _flatten(value: Any, tensors: list[Tensor]) -> str:
    """Collect the tensors of nested results; return their structure as text."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_flatten(item, tensors) for item in value)})"
    return repr(value)


def packed_inputs(size: int, hidden: int | None) -> Callable[[torch.Generator], list[tuple[Any, ...]]]:
    """Return what draws packed x ``[N, size]``, attention ``[N]`` and states ``[B, hidden]``, or no states."""

    def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
        sizes, order = torch.tensor([4, 3, 3, 1, 1]), torch.tensor([2, 0, 3, 1])
        calls: list[tuple[Any, ...]] = []
        for with_state in (True, False):
            x, att = uniform(generator, 12, size), uniform(generator, 12)
            h0 = uniform(generator, 4, hidden) if with_state and hidden else None
            packed = [PackedSequence(value, sizes, order, torch.argsort(order)) for value in (x, att)]
            calls.append((*packed, h0))
        return calls

    return draw


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw float64 numbers from [-1, 1] that want a gradient."""
    value = torch.empty(shape, dtype=torch.float64, device="cpu").uniform_(-1, 1, generator=generator)
    return value.requires_grad_()


class _Float64Factories(TorchFunctionMode):
    """In this thread, tensors that code makes as float32, or without naming a dtype, are float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and kwargs.get("dtype") in (None, torch.float32):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


_FACTORIES = {torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn}


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
