"""Loads the native library, gives its operators autograd and fake implementations, and chooses the backend."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = Path(__file__).parents[1] / "_native" / "libdien_fast_cpu.so"
CUDA_LIBRARY = LIBRARY.with_name("libdien_fast_cuda.so")

# Positions in the operator; the kernels' enum has the same order.
CELLS = {"augru": 0, "augru_official": 1, "augru_inverted": 2, "agru": 3, "gru": 4}

# Above this many numbers of state, backward computes the gates again instead of keeping 4 numbers a state.
SAVED_GATES_LIMIT = 10_000_000

# What the kernels of a device take.
NATIVE_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}

_ENVIRONMENT = os.environ.get("DIEN_FAST_BACKEND")

# As in csrc/library.cpp.
_SCHEMA = (
    "attention_gru(Tensor x, Tensor? att, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? h0, Tensor? lengths, Tensor? offsets, Tensor? batch_sizes, Tensor? x_start, int cell, "
    "bool save_states, bool save_gates) -> (Tensor states, Tensor last, Tensor gates)"
)
_libraries: list[torch.library.Library] = []  # a definition lasts as long as its object

_chosen: ContextVar[str | None] = ContextVar("dien_fast_backend", default=None)


@dataclass(frozen=True)
class Backend:
    """The code that runs :func:`dien_fast.functional.attention_gru`.

    Attributes:
        name: ``"native"``, the library of kernels, or ``"reference"``, the loop of
            :mod:`dien_fast.reference`.
        detail: one sentence on it.
    """

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})"


def _load() -> bool:
    """Load the library if it was built; raise if it is there and cannot be loaded."""
    if not LIBRARY.exists():
        return False
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(f"dien-fast's native library cannot be loaded: {error}") from error
    return True


def _load_cuda() -> bool:
    """Load the CUDA kernels if they were built and torch has CUDA; warn if that fails, as the CPU's are there."""
    if torch.version.cuda is None or not CUDA_LIBRARY.exists():
        return False
    try:
        torch.ops.load_library(CUDA_LIBRARY)
    except OSError as error:
        warnings.warn(f"dien-fast's CUDA kernels cannot be loaded: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


_loaded = _load()
_cuda_loaded = _loaded and _load_cuda()
_warned = False
_warned_of: set[str] = set()


def backend() -> Backend:
    """Return the code in use, a small object that prints readably.

    Example:
        >>> backend().name in ("native", "reference")
        True
    """
    if wants_native():
        cuda = " and CUDA kernels" if _cuda_loaded else ""
        return Backend("native", f"CPU kernels for {torch.ops.dien_fast.cpu_capability()}{cuda}")
    why = "as asked for" if _loaded else "as no native library was built"
    return Backend("reference", f"a loop over time steps in PyTorch, {why}")


def wants_native() -> bool:
    """Whether the native operators are to run; warns once if they are missing and nobody chose the loop."""
    global _warned
    name = _chosen.get() or _ENVIRONMENT or ("native" if _loaded else None)
    if name == "native":
        if not _loaded:
            raise RuntimeError(f"the native backend needs the library {LIBRARY.name}, which was not built")
        return True
    if name not in (None, "reference"):
        raise ValueError(f"DIEN_FAST_BACKEND must be 'native' or 'reference', got {name!r}")
    if name is None and not _warned:
        _warned = True
        warnings.warn(
            "dien-fast runs without its native library, several times slower: it was not built; "
            "DIEN_FAST_BACKEND=reference chooses this without a warning",
            RuntimeWarning,
            stacklevel=3,
        )
    return False


# torch.compile cannot read a ContextVar, so the choice is made while it traces. The mark is all that
# torch.compiler.assume_constant_result does, but for importing the compiler, which takes a second.
wants_native._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_kernels(x: Tensor) -> bool:
    """Whether the recurrence has native kernels for the device and dtype of ``x``."""
    if x.is_cpu:
        return x.dtype in NATIVE_DTYPES["cpu"]
    return _cuda_loaded and x.is_cuda and x.dtype in NATIVE_DTYPES["cuda"]


def warn_of_device(device: torch.device) -> None:
    """Warn once for each kind of device that the loop runs there, unless it was chosen."""
    chosen = _chosen.get() or _ENVIRONMENT
    if device.type in ("cpu", "meta", *_warned_of) or chosen == "reference" or not _loaded:
        return
    if device.type == "cuda" and _cuda_loaded:
        return
    _warned_of.add(device.type)
    warnings.warn(
        f"dien-fast has no kernels for {device.type} here and runs a loop over time steps there, several times "
        "slower; DIEN_FAST_BACKEND=reference chooses this without a warning",
        RuntimeWarning,
        stacklevel=4,
    )


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run a block with the ``"native"`` or the ``"reference"`` backend, in this thread or task alone.

    Raises:
        ValueError: for another name.
        RuntimeError: if the native library was not built.

    Example:
        >>> with use_backend("reference"):
        ...     print(backend().name)
        reference
    """
    if name not in ("native", "reference"):
        raise ValueError(f"name must be 'native' or 'reference', got {name!r}")
    if name == "native" and not _loaded:
        raise RuntimeError(f"the native backend needs the library {LIBRARY.name}, which was not built")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def vector_padded(size: int, widths: Sequence[int], dtype: torch.dtype) -> int:
    """Return ``size`` up to whole vectors of the kernels for rows of ``widths``."""
    lanes = torch.ops.dien_fast.vector_bytes(widths) // dtype.itemsize
    return (size + lanes - 1) // lanes * lanes


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of attention and states beside ``dtype`` on CUDA."""
    return torch.promote_types(dtype, torch.float32)


def _fake_forward(
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    batch_sizes: Tensor | None,
    x_start: Tensor | None,
    cell: int,
    save_states: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    others = {"att": att, "weight_ih": weight_ih, "weight_hh": weight_hh}
    others |= {"bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0}
    for name, value in others.items():
        # One argument on the meta device takes all of them here.
        if value is not None and value.device != x.device:
            raise RuntimeError(f"{name} must be on {x.device} as x is, got {value.device}")
    hidden = weight_hh.size(1)
    # Where histories share rows of x, only the attention has a row for every step.
    shape = x.shape[:-1] if x_start is None or att is None else att.shape
    if h0 is not None:
        batch = h0.size(0)
    elif lengths is not None:
        batch = lengths.size(0)
    elif offsets is not None:
        batch = offsets.size(0) - 1
    else:
        batch = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    if x.device.type == "cuda":  # keeps float32 states for 16-bit ones, nothing else
        kept = math.prod(shape) if save_gates and x.dtype != _wide(x.dtype) else 0
        gates = x.new_empty((kept, hidden), dtype=_wide(x.dtype))
    else:
        columns = 4 * vector_padded(hidden, [hidden], x.dtype)
        gates = x.new_empty((math.prod(shape) if save_gates else 0, columns))
    return x.new_empty((*shape, hidden) if save_states else (0, hidden)), x.new_empty((batch, hidden)), gates


def _fake_backward(
    dstates: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    batch_sizes: Tensor | None,
    states: Tensor,
    gates: Tensor,
    cell: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    bias, state = weight_hh.shape[:1], () if h0 is None else h0.shape
    shapes = (x.shape, x.shape[:-1], weight_ih.shape, weight_hh.shape, bias, bias, state)
    needs = (wanted[0], wanted[1], *[wanted[2]] * 4, wanted[3])
    wide = _wide(x.dtype) if x.device.type == "cuda" else x.dtype
    dtypes = (x.dtype, wide, *[x.dtype] * 4, wide)
    return tuple(
        x.new_empty(shape if want else (0,), dtype=dtype)
        for want, shape, dtype in zip(needs, shapes, dtypes, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, x_start, cell, _, _ = inputs
    states, _, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.shared = cell, x_start is not None
    ctx.save_for_backward(*tensors, states, gates)


def _backward(ctx: Any, dstates: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if ctx.shared:
        raise NotImplementedError("attention_gru has no gradient where histories share rows of x")
    saved = ctx.saved_tensors
    bias_ih, bias_hh, h0 = saved[4:7]
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1], any(needs[2:6]), h0 is not None and needs[6]]
    arguments = (
        None if dstates is None else dstates.contiguous(),
        None if dlast is None else dlast.contiguous(),
        *saved,
        ctx.cell,
        wanted,
    )
    if torch.is_grad_enabled():  # create_graph: the operator's own autograd says that there is no more
        gradients = torch.ops.dien_fast.attention_gru_backward.default(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            gradients = torch.ops.dien_fast.attention_gru_backward.default(*arguments)
    dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0 = gradients
    return (
        dx if needs[0] else None,
        datt if needs[1] else None,
        dweight_ih if needs[2] else None,
        dweight_hh if needs[3] else None,
        dbias_ih if bias_ih is not None and needs[4] else None,
        dbias_hh if bias_hh is not None and needs[5] else None,
        dh0 if wanted[3] else None,
        *[None] * 7,
    )


def _refuse_double_backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise NotImplementedError("attention_gru has no second derivative; use_backend('reference') has one")


class _AttentionGRU(torch.autograd.Function):
    """The operator's autograd without the dispatcher's way to it, longer than a short call's kernels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.dien_fast.attention_gru.default(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    backward = staticmethod(_backward)


def _define_over_the_loop() -> None:
    """Define the operator over the reference loop, so that scripted and exported code runs without the library."""

    def attention_gru(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        from dien_fast import functional  # which needs this module

        *leaves, lengths, offsets, batch_sizes, x_start, cell, _, _ = arguments
        if x_start is not None:
            raise NotImplementedError("histories that share rows of x need the native library")
        x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = leaves
        states, last = functional.attention_gru(
            x,
            att,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            h0,
            lengths=lengths,
            offsets=offsets,
            batch_sizes=batch_sizes,
            cell=next(name for name, number in CELLS.items() if number == cell),
        )
        assert states is not None
        return states, last, x.new_empty(0, 0)

    library = torch.library.Library("dien_fast", "DEF")
    library.define(_SCHEMA)
    library.impl("attention_gru", attention_gru, "CompositeImplicitAutograd")
    _libraries.append(library)


if _loaded:
    torch.library.register_fake("dien_fast::attention_gru", _fake_forward)
    torch.library.register_fake("dien_fast::attention_gru_backward", _fake_backward)
    torch.library.register_autograd("dien_fast::attention_gru", _backward, setup_context=_setup_context)
    torch.library.register_autograd("dien_fast::attention_gru_backward", _refuse_double_backward)
else:
    _define_over_the_loop()


def _is_small(numbers: int) -> bool:
    """Whether backward is to find the gates; not where traced code does not know how many numbers there are."""
    small = numbers <= SAVED_GATES_LIMIT
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(small)
    return small


def _on_device(integers: Tensor | None, device: torch.device) -> Tensor | None:
    if integers is None or integers.is_floating_point() or integers.dtype == torch.bool:
        return integers  # for the operator to refuse
    return integers.to(device, torch.int64, non_blocking=True).contiguous()


def native_attention_gru(
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    layout: tuple[Tensor | None, Tensor | None, Tensor | None],
    cell: str,
    return_states: bool,
    x_start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the operator, which checks its arguments: of :data:`NATIVE_DTYPES`, all on one device but the layout.

    ``x_start`` ``[B]`` is the first row of x of each history where histories share rows, without gradient. On
    CUDA, attention and h0 of 16-bit inputs are float32.

    Returns:
        States in the layout of ``x`` (``[0, H]`` where nobody needs them) and last states ``[B, H]``.
    """
    differentiable = torch.is_grad_enabled() and (
        x.requires_grad
        or weight_ih.requires_grad
        or weight_hh.requires_grad
        or (att is not None and att.requires_grad)
        or (bias_ih is not None and bias_ih.requires_grad)
        or (bias_hh is not None and bias_hh.requires_grad)
        or (h0 is not None and h0.requires_grad)
    )
    # Exported, the limit would bound the number of rows; without gates backward computes them again.
    save_gates = differentiable and (
        not x.is_cpu
        or (not torch.compiler.is_exporting() and _is_small(math.prod(x.shape[:-1]) * weight_hh.size(1)))
    )
    lengths, offsets, batch_sizes = layout
    if not x.is_cpu:
        # Copies to the device that nothing waits for; the kernels take int64.
        lengths, offsets, x_start = (_on_device(value, x.device) for value in (lengths, offsets, x_start))
        batch_sizes = None if batch_sizes is None else batch_sizes.to("cpu", torch.int64).contiguous()
    arguments = (
        x.contiguous(),
        None if att is None else att.contiguous(),
        weight_ih.contiguous(),
        weight_hh.contiguous(),
        None if bias_ih is None else bias_ih.contiguous(),
        None if bias_hh is None else bias_hh.contiguous(),
        None if h0 is None else h0.contiguous(),
        lengths if lengths is None or lengths.is_cpu or not x.is_cpu else lengths.cpu(),
        offsets if offsets is None or offsets.is_cpu or not x.is_cpu else offsets.cpu(),
        batch_sizes if batch_sizes is None or batch_sizes.is_cpu else batch_sizes.cpu(),
        x_start,
        CELLS[cell],
        return_states or differentiable,
        save_gates,
    )
    if (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or forward_ad._current_level >= 0
    ):
        states, last, _ = torch.ops.dien_fast.attention_gru.default(*arguments)
    elif differentiable:
        states, last, _ = _AttentionGRU.apply(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            states, last, _ = torch.ops.dien_fast.attention_gru.default(*arguments)
    return states, last
