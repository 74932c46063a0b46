"""Ragged rows: sequences of different lengths stored one after the other, without padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dien_fast.ops.layouts import owners_of
from dien_fast.ops.rows import (
    COPY_KERNELS,
    PAD_KERNELS,
    padded_from_rows,
    plain_padded_from_rows,
    plain_rows_from_padded,
    rows_from_padded,
)


class Ragged(NamedTuple):
    """B sequences in one tensor: sequence ``b`` is ``values[offsets[b]:offsets[b + 1]]``.

    Attributes:
        values: ``[N]`` ids or ``[N, D]`` vectors, all sequences one after the other.
        offsets: ``[B + 1]`` int64, rising from 0 to N.
        max_length: the width the sequences are padded to wherever a width matters
            (batch statistics, :meth:`pad`); at least the longest length.

    Example:
        >>> rows = Ragged(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 2, 3]), max_length=4)
        >>> rows.lengths().tolist()
        [2, 0, 1]
        >>> rows.pad().tolist()
        [[7, 8, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]]
    """

    values: Tensor
    offsets: Tensor
    max_length: int

    def lengths(self) -> Tensor:
        """Return the ``[B]`` int64 lengths in steps."""
        return self.offsets[1:] - self.offsets[:-1]

    def same_offsets(self, other: Ragged) -> bool:
        """Whether both have sequences of the same lengths."""
        if self.offsets is other.offsets:
            return True
        # What offsets hold is unknown while code is traced; the operators check it when it runs.
        return not torch.compiler.is_compiling() and torch.equal(self.offsets, other.offsets)

    def fits(self, other: Ragged) -> bool:
        """Whether both may have sequences of the same lengths.

        Lengths are compared on the CPU alone, elsewhere that would wait for the device; their number everywhere.
        """
        if torch.compiler.is_compiling():
            return True
        if self.offsets.shape != other.offsets.shape or self.values.size(0) != other.values.size(0):
            return False
        return not self.offsets.is_cpu or self.same_offsets(other)

    def check(self, name: str) -> None:
        """Raise ValueError, in one sentence about ``name``, unless the three parts fit together.

        Offsets are looked at on the CPU alone, elsewhere that would wait for the device; in traced code the
        operators look at them when it runs.
        """
        if self.offsets.dim() != 1 or self.offsets.numel() == 0:
            raise ValueError(f"{name}.offsets must have shape (B + 1,), got {tuple(self.offsets.shape)}")
        if not self.offsets.is_cpu or torch.compiler.is_compiling():
            return
        lengths = self.lengths()
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, self.values.size(0)) or bool((lengths < 0).any()):
            raise ValueError(
                f"{name}.offsets must rise from 0 to {self.values.size(0)}, got {ends[0]} to {ends[1]}"
            )
        longest = int(lengths.max()) if lengths.numel() else 0
        if longest > self.max_length:
            raise ValueError(
                f"{name}.max_length must be at least the longest length {longest}, got {self.max_length}"
            )

    def owners(self) -> Tensor:
        """Return the ``[N]`` int64 number of the sequence each row belongs to."""
        return owners_of(self.offsets, self.values.size(0))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """Return the same rows on ``device``."""
        return Ragged(
            self.values.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
            self.max_length,
        )

    def pin_memory(self) -> Ragged:
        """Return a copy in page-locked host memory."""
        return Ragged(self.values.pin_memory(), self.offsets.pin_memory(), self.max_length)

    def pad(self) -> Tensor:
        """Return ``[B, max_length, ...]`` with zeros behind each sequence."""
        pad = padded_from_rows if PAD_KERNELS.are_used(self.values) else plain_padded_from_rows
        return pad(self.values, self.offsets, self.max_length)

    def take(self, sequences: Tensor) -> Ragged:
        """Return sequences by their numbers ``[C]``, each as often as it is named."""
        offsets, starts = self.shared(sequences)
        # Traced, the number is a symbol, which int() would ask for its value.
        rows: int = offsets[-1].item()  # type: ignore[assignment]
        if torch.compiler.is_compiling():
            torch._check(rows >= 0)
        owners = owners_of(offsets, rows)
        steps = torch.arange(owners.numel(), device=offsets.device) - offsets[:-1][owners]
        return Ragged(self.values[starts[owners] + steps], offsets, self.max_length)

    def shared(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets that :meth:`take` has ``[C + 1]`` and the first row of each sequence here ``[C]``."""
        offsets = torch.nn.functional.pad(self.lengths()[sequences].cumsum(0), (1, 0))
        return offsets, self.offsets[:-1][sequences]

    def mask(self) -> Tensor:
        """Return ``[B, max_length]`` bool, True where a sequence has a step."""
        steps = torch.arange(self.max_length, device=self.offsets.device)
        return steps < self.lengths().unsqueeze(1)

    @staticmethod
    def from_padded(padded: Tensor, lengths: Tensor) -> Ragged:
        """Return the first ``lengths[b]`` steps of each row of ``padded`` ``[B, T, ...]``."""
        offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=padded.device)
        torch.cumsum(lengths, dim=0, out=offsets[1:])
        return Ragged(Ragged.rows_of(padded, offsets), offsets, padded.size(1))

    @staticmethod
    def rows_of(padded: Tensor, offsets: Tensor) -> Tensor:
        """Return the rows ``[N, ...]`` of ``padded`` ``[B, T, ...]`` that ragged rows with ``offsets`` have."""
        rows_of = rows_from_padded if COPY_KERNELS.are_used(padded) else plain_rows_from_padded
        return rows_of(padded, offsets)
