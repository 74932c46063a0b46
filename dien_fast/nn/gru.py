"""The attention GRU as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dien_fast import reference
from dien_fast.functional import attention_gru
from dien_fast.ops.cells import CELLS, Weights
from dien_fast.ragged import Ragged
from dien_fast.reference.gru import check_packed

__all__ = ["AttentionGRUCell", "AttentionUpdateGateGRUCell", "DynamicGRU"]


class _Step(reference.AttentionGRUCell):
    """One step of the recurrence through the operator."""

    cell: ClassVar[str]  # its name
    cell_number: ClassVar[int]  # its number in the operator
    __constants__ = ["cell_number"]

    def forward(self, x: Tensor, hx: Tensor, att_score: Tensor) -> Tensor:
        """Step from ``hx`` ``[B, H]`` on ``x`` ``[B, I]`` and ``att_score`` ``[B]``; ``[B, H]`` out."""
        # Every row is a history of one step.
        offsets = torch.arange(x.size(0) + 1, device=x.device)
        _, last = self.run(x, att_score.reshape(-1), hx, offsets, None, False)
        return last

    def run(
        self,
        x: Tensor,
        att: Tensor,
        h0: Tensor | None,
        offsets: Tensor | None,
        batch_sizes: Tensor | None,
        return_states: bool,
    ) -> tuple[Tensor | None, Tensor]:
        """Run the recurrence over ragged or packed rows, as :func:`dien_fast.functional.attention_gru`."""
        states: Tensor | None = None
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript knows the operator, but neither attention_gru's keywords nor the choice of a backend.
            states, last, _ = torch.ops.dien_fast.attention_gru(
                x.contiguous(),
                att.contiguous(),
                self.weight_ih,
                self.weight_hh,
                self.bias_ih,
                self.bias_hh,
                None if h0 is None else h0.contiguous(),
                lengths=None,
                offsets=offsets,
                batch_sizes=batch_sizes,
                x_start=None,
                cell=self.cell_number,
                save_states=True,
                save_gates=True,
            )
        else:
            states, last = attention_gru(
                x,
                att,
                *Weights.of_cell(self),
                h0,
                offsets=offsets,
                batch_sizes=batch_sizes,
                cell=self.cell,
                return_states=return_states,
            )
        return states, last


class AttentionGRUCell(_Step, reference.AttentionGRUCell):
    """One AGRU step (equation 7) through the operator; arguments as :class:`reference.AttentionGRUCell`."""

    cell = "agru"
    cell_number = CELLS["agru"]


class AttentionUpdateGateGRUCell(_Step, reference.AttentionUpdateGateGRUCell):
    """One AUGRU step (equations 8 and 9) through the operator; arguments as :class:`AttentionGRUCell`."""

    cell = "augru"
    cell_number = CELLS["augru"]


class DynamicGRU(reference.DynamicGRU):
    """AGRU or AUGRU over a packed batch or ragged rows, through :func:`dien_fast.functional.attention_gru`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether the cell has bias vectors.
        gru_type: ``"AGRU"`` or ``"AUGRU"``.

    Raises:
        NotImplementedError: for any other ``gru_type``, or an argument of :meth:`forward` that is not packed.

    Example:
        >>> import torch
        >>> from torch.nn.utils.rnn import pack_sequence
        >>> x = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
        >>> att = pack_sequence([torch.rand(3), torch.rand(2)])
        >>> DynamicGRU(4, 8, gru_type="AUGRU")(x, att).data.shape
        torch.Size([5, 8])
    """

    cells: ClassVar[dict[str, type[reference.AttentionGRUCell]]] = {
        "AGRU": AttentionGRUCell,
        "AUGRU": AttentionUpdateGateGRUCell,
    }

    if TYPE_CHECKING:  # TorchScript takes no class of this package for a type
        rnn: _Step

    def forward(self, x: PackedSequence, att_scores: PackedSequence, hx: Tensor | None = None) -> PackedSequence:
        """Return the states of every step; arguments and result as :meth:`reference.DynamicGRU.forward`."""
        rows, batch_sizes, sorted_indices, unsorted_indices = check_packed(x, att_scores)
        states, _ = self.rnn.run(rows, att_scores.data, hx, None, batch_sizes, True)
        assert states is not None
        return PackedSequence(states, batch_sizes, sorted_indices, unsorted_indices)

    def forward_ragged(
        self, x: Ragged, att_scores: Tensor, return_states: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Run over ragged rows.

        Args:
            x: inputs, ragged ``[N, I]``.
            att_scores: attention ``[N]`` of the same rows.
            return_states: whether all states are wanted.

        Returns:
            The states ``[N, H]`` (None unless wanted) and the last state of each history ``[B, H]``, 0 for
            an empty one.
        """
        states, last = self.rnn.run(x.values, att_scores, None, x.offsets, None, return_states)
        return states, last
