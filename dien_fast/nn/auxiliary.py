"""The auxiliary net over ragged histories, computed on valid steps only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.nn.batch_norm import uses_batch_statistics
from dien_fast.nn.collectives import weight_of
from dien_fast.nn.native_layers import is_watched, loss_parameters
from dien_fast.ops import auxiliary_loss as operator
from dien_fast.ragged import Ragged


class AuxiliaryNet(reference.AuxiliaryNet):
    """The click probability of an event after an interest state.

    Args:
        input_size: size of [state, event], 2D.
        hidden_layers: output sizes of the hidden layers.
        activation: name of the hidden layers' activation.

    Attributes:
        of_all_processes: whether the losses are weighted in training, so that the mean that DDP makes of the
            processes' gradients is the gradient of the mean over the events of all of them.

    Example:
        >>> AuxiliaryNet(8, [100, 50])(torch.randn(3, 8)).shape
        torch.Size([3, 1])
    """

    of_all_processes = False

    def ragged_loss(self, states: Ragged, events: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean binary cross entropy of each history's events 2..len against the states before them.

        Args:
            states: ragged ``[N, D]``.
            events: clicked ``[N, D]``, at the steps of ``states``.
            negatives: not clicked ``[N, D]``.

        Returns:
            A scalar; 0 where no history has two steps.
        """
        return self._weighted(self._ragged_loss(states, events, negatives), states.lengths())

    def runs_kernels(self, *tensors: Tensor) -> bool:
        """Whether :meth:`ragged_loss` of such tensors is one operator."""
        parameters = self._native_parameters()
        return parameters is not None and operator.KERNELS.are_used(*tensors, parameters[0])

    def _ragged_loss(self, states: Ragged, events: Tensor, negatives: Tensor) -> Tensor:
        parameters = self._native_parameters()
        if parameters is not None and operator.KERNELS.are_used(states.values, events, negatives, parameters[0]):
            return operator.auxiliary_loss(states.values, events, negatives, states.offsets, parameters)
        # Statistics of a batch must not count the rows that are masked.
        select = any(map(uses_batch_statistics, self.mlp.modules()))
        return operator.plain_auxiliary_loss(states.values, events, negatives, states.offsets, self.logits, select)

    def padded_loss(self, states: Tensor, events: Tensor, negatives: Tensor, lengths: Tensor) -> Tensor:
        """Return the loss of padded histories without picking their valid steps, which would wait for a device.

        Args:
            states: ``[B, T, D]``, 0 on padding.
            events: clicked ``[B, T, D]``.
            negatives: not clicked ``[B, T, D]``.
            lengths: ``[B]`` int64.

        Returns:
            A scalar; 0 where no history has two steps.
        """
        steps = torch.arange(1, states.size(1), device=states.device)
        valid = steps < lengths.unsqueeze(1)
        clicked, sampled = (torch.where(valid.unsqueeze(2), rows[:, 1:], 0) for rows in (events, negatives))
        click, noclick = self.logits(states[:, :-1], clicked, sampled)
        return self._weighted(operator.masked_mean_loss(click, noclick, valid), lengths)

    def _weighted(self, loss: Tensor, lengths: Tensor) -> Tensor:
        """Weight the mean loss of histories with ``lengths`` ``[B]`` by their share of all processes' events."""
        if not (self.of_all_processes and self.training):
            return loss
        return loss * weight_of((lengths - 1).clamp(min=0).sum()).to(loss.dtype)

    def _native_parameters(self) -> list[Tensor] | None:
        """Return weights and biases if the net is what the operator computes."""
        return None if is_watched(self.mlp) else loss_parameters(list(self.mlp))

    def logits(self, states: Tensor, *events: Tensor) -> list[Tensor]:
        """Return the logits ``[...]`` of each of several events ``[..., D]`` after the ``states`` ``[..., D]``."""
        first, *rest = self.mlp
        assert isinstance(first, nn.Linear)
        return operator.event_logits(first.weight, first.bias, rest, states, *events)
