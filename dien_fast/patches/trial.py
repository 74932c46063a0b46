"""Runs copies of modules in float64 with random weights, without disturbing the caller."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

SEED = 20180911
Draw = Callable[[torch.Generator], list[tuple[Any, ...]]]
"""Draws the arguments of a trial's calls."""


@contextmanager
def undisturbed() -> Iterator[torch.Generator]:
    """Compute in float64 on the CPU with gradients in any context of the caller, whose random state is kept."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {"cpu", torch.get_default_device().type}:
            if device != "meta":
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(_Float64Factories())
        yield torch.Generator("cpu").manual_seed(SEED)


class _Float64Factories(TorchFunctionMode):
    """In this thread, tensors that code makes as float32 or without a dtype are float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and kwargs.get("dtype") in (None, torch.float32):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


_FACTORIES = {torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def random_copy(module: nn.Module, generator: torch.Generator, scale: float = 0.7) -> Any:
    """Return a copy in float64 on the CPU, without hooks, with random parameters; tied parameters stay tied.

    The module's own weights would not do: where they are nearly zero, different rules give nearly the same
    numbers.
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


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw float64 numbers from [-1, 1] that require a gradient."""
    value = torch.empty(shape, dtype=torch.float64, device="cpu").uniform_(-1, 1, generator=generator)
    return value.requires_grad_()


def packed_inputs(size: int, hidden: int) -> Draw:
    """Return what draws packed x ``[N, size]``, packed attention ``[N]``, and states ``[B, hidden]`` or None."""

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


def outcome(
    twin: nn.Module, calls: list[tuple[Any, ...]], generator: torch.Generator
) -> tuple[list[Tensor], list[str]]:
    """Run calls of a copy, forward and backward.

    Returns:
        All outputs, gradients and buffers, and the structure of the outputs as text.
    """
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
    """Append the tensors of nested results to ``tensors``; return the structure as text."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_flatten(item, tensors) for item in value)})"
    return repr(value)


def gradients_of(out: Tensor, leaves: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return the gradients of a randomly weighted sum of ``out``; zeros for leaves that it does not depend on."""
    weight = torch.empty(out.shape, dtype=torch.float64, device="cpu").uniform_(-1, 1, generator=generator)
    loss = (out * weight).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def largest_difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest difference between two lists of tensors, relative to the largest number of each pair.

    It is infinite where shapes differ or numbers are not finite.
    """
    worst = 0.0
    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        if theirs.numel():
            size = max(1.0, float(theirs.abs().max()))
            difference = float((ours - theirs).abs().max()) / size
            if not math.isfinite(difference):  # max() would drop a NaN
                return math.inf
            worst = max(worst, difference)
    return worst


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error, for a report."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
