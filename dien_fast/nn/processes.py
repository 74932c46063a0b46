"""Layers over several processes: means and batch statistics of all processes' batches.

DDP averages the gradients of the processes. That is the gradient of one large batch where a process computes the
mean over equally many terms. The auxiliary loss is a mean over pairs of events, of which each batch has another
number, and batch normalisation takes its statistics from the batch it sees; both need to hear of the other
processes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dien_fast.nn.auxiliary import AuxiliaryNet
from dien_fast.nn.batch_norm import SynchronisedBatchNorm1d


def synchronise(model: nn.Module, batch_norm: bool = False) -> Callable[[], None]:
    """Let a model's training in several processes be that of one process with the batches of all.

    Args:
        model: its auxiliary losses are weighted by how many events each process's batch has.
        batch_norm: whether its batch normalisations use the batches of all processes too; the native attention,
            which normalises inside, is then left for plain PyTorch.

    Returns:
        What makes the model as it was before.

    Example:
        >>> from dien_fast import Interest
        >>> undo = synchronise(Interest(8))
        >>> undo()
    """
    nets = [module for module in model.modules() if isinstance(module, AuxiliaryNet)]
    norms = [module for module in model.modules() if batch_norm and type(module) is nn.BatchNorm1d]
    for net in nets:
        net.of_all_processes = True
    for norm in norms:
        norm.__class__ = SynchronisedBatchNorm1d

    def undo() -> None:
        for net in nets:
            net.of_all_processes = False
        for norm in norms:
            norm.__class__ = nn.BatchNorm1d

    return undo
