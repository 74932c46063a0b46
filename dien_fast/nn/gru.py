"""The attention GRU as modules."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dien_fast import reference
from dien_fast.functional import attention_gru
from dien_fast.ragged import Ragged
from dien_fast.reference.gru import check_packed

__all__ = ["AttentionGRUCell", "AttentionUpdateGateGRUCell", "DynamicGRU"]


class _Step(reference.AttentionGRUCell):
    """One step of the recurrence through the operator."""

    def forward(self, x: Tensor, hx: Tensor, att_score: Tensor) -> Tensor:
        """Step from ``hx`` ``[B, H]`` on ``x`` ``[B, I]`` and ``att_score`` ``[B]``; ``[B, H]`` out."""
        offsets = torch.arange(x.size(0) + 1, device=x.device)
        att = att_score.reshape(-1)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        update_gate = self.weight_hh.size(0) == 3 * self.hidden_size
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            cell = 0 if update_gate else 3
            _, last, _ = torch.ops.dien_fast.attention_gru(
                x.contiguous(), att, *weights, hx.contiguous(), None, offsets, None, None, cell, True, True
            )
        else:
            name = "augru" if update_gate else "agru"
            _, last = attention_gru(x, att, *weights, hx, offsets=offsets, cell=name, return_states=False)
        return last


class AttentionGRUCell(_Step, reference.AttentionGRUCell):
    """One AGRU step (equation 7) through the operator; arguments as :class:`reference.AttentionGRUCell`."""


class AttentionUpdateGateGRUCell(_Step, reference.AttentionUpdateGateGRUCell):
    """One AUGRU step (equations 8 and 9) through the operator; arguments as :class:`AttentionGRUCell`."""


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

    def forward(self, x: PackedSequence, att_scores: PackedSequence, hx: Tensor | None = None) -> PackedSequence:
        """Return the states of every step; arguments and result as :meth:`reference.DynamicGRU.forward`."""
        rows, batch_sizes, sorted_indices, unsorted_indices = check_packed(x, att_scores)
        cell = self.rnn
        name = self.gru_type.lower()
        weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript knows the operator, but neither attention_gru's keywords nor the choice of a backend.
            states, _, _ = torch.ops.dien_fast.attention_gru(
                rows.contiguous(),
                att_scores.data.contiguous(),
                *weights,
                None if hx is None else hx.contiguous(),
                None,
                None,
                batch_sizes,
                None,
                0 if name == "augru" else 3,
                True,
                True,
            )
        else:
            returned, _ = attention_gru(rows, att_scores.data, *weights, hx, batch_sizes=batch_sizes, cell=name)
            assert returned is not None
            states = returned
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
            cell=self.gru_type.lower(),
            return_states=return_states,
        )
