"""The attention GRU as modules."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dien_fast import reference
from dien_fast.functional import attention_gru
from dien_fast.ragged import Ragged
from dien_fast.reference.gru import AttentionGRUCell, AttentionUpdateGateGRUCell, check_packed

__all__ = ["AttentionGRUCell", "AttentionUpdateGateGRUCell", "DynamicGRU"]


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

    cell_names: ClassVar[dict[type, str]] = {AttentionGRUCell: "agru", AttentionUpdateGateGRUCell: "augru"}

    def forward(self, x: PackedSequence, att_scores: PackedSequence, hx: Tensor | None = None) -> PackedSequence:
        """Return the states of every step; arguments and result as :meth:`reference.DynamicGRU.forward`."""
        rows, batch_sizes, sorted_indices, unsorted_indices = check_packed(x, att_scores)
        cell = self.rnn
        states, _ = attention_gru(
            rows,
            att_scores.data,
            cell.weight_ih,
            cell.weight_hh,
            cell.bias_ih,
            cell.bias_hh,
            hx,
            batch_sizes=batch_sizes,
            cell=self.cell_names[type(cell)],
        )
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
        cell = self.rnn
        return attention_gru(
            x.values,
            att_scores,
            cell.weight_ih,
            cell.weight_hh,
            cell.bias_ih,
            cell.bias_hh,
            offsets=x.offsets,
            cell=self.cell_names[type(cell)],
            return_states=return_states,
        )
