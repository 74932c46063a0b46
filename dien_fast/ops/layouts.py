"""Where the steps of a batch are: checks of lengths, offsets and batch sizes, row addresses, and packed order."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

# Whether calls on CUDA wait for the device to check lengths and offsets. The kernels never read or write outside
# their tensors, whatever those hold.
CHECK = os.environ.get("DIEN_FAST_CHECK") == "1"


class Layout(NamedTuple):
    """The layout of a batch as a caller gives it: exactly one of three."""

    lengths: Tensor | None = None  # [B] of rows padded to [B, T, ...]
    offsets: Tensor | None = None  # [B + 1] of ragged rows
    batch_sizes: Tensor | None = None  # [T] of packed rows


class Addresses(NamedTuple):
    """Where the steps are: step t of history b is row ``row_start[b] + step_start[t]``; int64, on x's device."""

    steps: Tensor  # [B] steps of each history
    row_start: Tensor  # [B]
    step_start: Tensor | None  # [T]; None is 0, 1, 2, ...


class Schedule(NamedTuple):
    """Packed order of a batch: which rows run at which step."""

    rows: Tensor  # [N] row of x at each packed position
    batch_sizes: list[int]
    order: Tensor  # [B] histories, longest first


def addresses_of(x: Tensor, layout: Layout, h0: Tensor | None, hidden: int) -> Addresses:
    """Check the values of the one layout that is given, and h0 ``[B, hidden]`` against it.

    Raises:
        ValueError: where they do not fit ``x``; the message names the argument.
        TypeError: for a dtype that is not an integer's.
    """
    lengths, offsets, batch_sizes = layout
    if lengths is not None:
        steps = check_lengths("lengths", lengths, x.size(0), x.size(1)).to(x.device)
        addresses = Addresses(steps, torch.arange(x.size(0), device=x.device) * x.size(1), None)
    elif offsets is not None:
        bounds = _check_offsets(offsets, x.size(0)).to(x.device)
        addresses = Addresses(bounds[1:] - bounds[:-1], bounds[:-1], None)
    else:
        assert batch_sizes is not None
        sizes, batch = _check_batch_sizes(batch_sizes, x.size(0), h0)
        histories = torch.arange(batch)
        steps = (sizes > histories.unsqueeze(1)).sum(1)
        addresses = Addresses(steps.to(x.device), histories.to(x.device), (sizes.cumsum(0) - sizes).to(x.device))
    if h0 is not None:
        check_shape("h0", h0, (addresses.steps.numel(), hidden))
    return addresses


def packed_schedule(addresses: Addresses) -> Schedule:
    """Sort a batch into packed order."""
    steps, row_start, step_start = addresses
    order = torch.argsort(steps, descending=True, stable=True)
    longest = int(steps.max()) if steps.numel() else 0
    time = torch.arange(longest, device=steps.device)
    active = time.unsqueeze(1) < steps[order]
    rows = (row_start[order] + (time if step_start is None else step_start).unsqueeze(1))[active]
    return Schedule(rows, active.sum(1).tolist(), order)


def owners_of(offsets: Tensor, rows: int) -> Tensor:
    """Return the ``[N]`` int64 number of the history that each of N ragged ``rows`` belongs to."""
    histories = torch.arange(offsets.numel() - 1, device=offsets.device)
    # Without the size, a device would have to be waited for.
    return torch.repeat_interleave(histories, offsets[1:] - offsets[:-1], output_size=rows)


def check_shape(name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless ``value`` has ``shape``, where None stands for any size."""
    if value.dim() != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, value.shape, strict=True)
    ):
        wanted = ", ".join("*" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}")


def check_integers(name: str, value: Tensor, size: int | None) -> Tensor:
    """Return a vector of ``size`` integers (None: any) as int64; raise for another shape or dtype."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    check_shape(name, value, (size,))
    return value.to(torch.int64)


def check_lengths(name: str, lengths: Tensor, batch: int, longest: int) -> Tensor:
    """Return ``lengths`` as int64, or raise unless they are B integers in ``[0, T]``.

    Those on another device than the CPU are cut to ``[0, T]``; to look at them would wait for it.
    """
    lengths = check_integers(name, lengths, batch)
    if torch.compiler.is_compiling():
        # A length has no value while a graph is traced; the graph checks it when it runs.
        torch._assert_async(((lengths >= 0) & (lengths <= longest)).all(), f"{name} must lie in [0, T]")
    elif not lengths.is_cpu and not CHECK:
        return lengths.clamp(0, longest)
    elif batch and (int(lengths.min()) < 0 or int(lengths.max()) > longest):
        raise ValueError(f"{name} must lie in [0, {longest}], got [{int(lengths.min())}, {int(lengths.max())}]")
    return lengths


def _check_offsets(offsets: Tensor, rows: int) -> Tensor:
    offsets = check_integers("offsets", offsets, None)
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else None
    if ends != (0, rows) or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must rise from 0 to {rows}, got {offsets.tolist()[:8]} ...")
    return offsets


def _check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> tuple[Tensor, int]:
    """Return the sizes and B; with h0, B may exceed the first size by histories without a step."""
    sizes = check_integers("batch_sizes", batch_sizes, None).cpu()
    rising = bool((sizes[1:] > sizes[:-1]).any())
    if int(sizes.sum()) != rows or rising or (sizes.numel() and int(sizes[-1]) < 1):
        raise ValueError(f"batch_sizes must fall, be positive and sum to {rows}, got {sizes.tolist()[:8]} ...")
    first = int(sizes[0]) if sizes.numel() else 0
    batch = first if h0 is None else h0.size(0)
    if batch < first:
        raise ValueError(f"h0 must have at least {first} rows, got {batch}")
    return sizes, batch
