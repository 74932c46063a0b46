"""What the operators' files share: how a call reaches its kernels, with autograd or below it.

A differentiable operator gives its autograd to the dispatcher (``register``), for code that is compiled, exported,
traced or scripted. That detour takes longer than the kernels of a short call, so eager code runs the same two
functions in an autograd.Function (``eager_autograd``) instead. ``run`` chooses between the two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dien_fast.ops.backend import LOADED

_fallbacks: list[torch.library.Library] = []  # a definition lasts as long as its object


def through_dispatcher() -> bool:
    """Whether something other than eager autograd watches the operators."""
    return (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
    )


def below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operator without its autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def run(
    operator: Callable[..., Any], eager: Callable[..., Any], differentiable: bool, arguments: tuple[Any, ...]
) -> Any:
    """Call an operator the shortest way.

    Args:
        operator: the overload to call.
        eager: what :func:`eager_autograd` made for it.
        differentiable: whether somebody needs a gradient of one of the arguments.
        arguments: the operator's.
    """
    if through_dispatcher():
        return operator(*arguments)
    if differentiable:
        return eager(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def run_backward(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call a backward operator."""
    if torch.is_grad_enabled():
        # Under create_graph, go through autograd, whose backward raises.
        return operator(*arguments)
    return below_autograd(operator, *arguments)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is done with one of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refuse_double_backward(operator: str) -> Callable[..., Any]:
    """Return the autograd of a backward operator, which raises NotImplementedError."""

    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{operator} has no second derivative; use_backend('reference') has one")

    return refuse


def eager_autograd(operator: str, setup: Any, backward: Any, spread: int | None = None) -> Callable[..., Any]:
    """Return a function that calls an operator as a node of eager autograd.

    Args:
        operator: name of the operator.
        setup: keeps what backward needs, as ``setup_context`` of :func:`torch.library.register_autograd`.
        backward: returns the gradients of the operator's arguments, as there.
        spread: position of an argument that is a list of tensors. Autograd finds the gradients of tensors among
            the arguments, not of those inside a list, so its tensors are handed over one by one, last.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        if spread is not None:
            count, *arguments = arguments  # type: ignore[assignment]
            arguments = (*arguments[:spread], list(arguments[count:]), *arguments[spread:count])
        output = below_autograd(getattr(torch.ops.dien_fast, operator).default, *arguments)
        setup(ctx, arguments, output)
        return output

    def gradients(ctx: Any, *outputs: Any) -> Any:
        found = backward(ctx, *outputs)
        if spread is None:
            return found
        others = [None if isinstance(value, list) else value for value in (*found[:spread], *found[spread + 1 :])]
        return None, *others, *found[spread]

    members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    function: Any = type(operator, (torch.autograd.Function,), members)
    if spread is None:
        apply: Callable[..., Any] = function.apply
        return apply

    def call(*arguments: Any) -> Any:
        others = arguments[:spread] + arguments[spread + 1 :]
        return function.apply(len(others), *others, *arguments[spread])

    return call


def register(operator: str, fake: Any, backward: Any = None, setup: Any = None) -> None:
    """Give an operator of the library its fake implementation and, unless it has no gradient, its autograd."""
    torch.library.register_fake(f"dien_fast::{operator}", fake)
    if backward is not None:
        torch.library.register_autograd(f"dien_fast::{operator}", backward, setup_context=setup)


def define(schema: str, fallback: Callable[..., Any]) -> None:
    """Define an operator over plain PyTorch, so that exported and scripted code runs without the library."""
    assert not LOADED
    library = torch.library.Library("dien_fast", "FRAGMENT")
    library.define(schema)
    library.impl(schema.partition("(")[0], fallback, "CompositeImplicitAutograd")
    _fallbacks.append(library)


def vector_padded(size: int, widths: Sequence[int], dtype: torch.dtype) -> int:
    """Return ``size`` up to whole vectors of the kernels for rows of ``widths``."""
    lanes = torch.ops.dien_fast.vector_bytes(widths) // dtype.itemsize
    return (size + lanes - 1) // lanes * lanes
