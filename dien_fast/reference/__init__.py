"""The specification in plain PyTorch: readable loops over padded or packed batches.

Everything fast in this package is checked against this package. Signatures, attribute names and
``state_dict`` keys are those of the PyTorch listing that the package implements, so its checkpoints load
with ``strict=True``; the paper is *Deep Interest Evolution Network for Click-Through Rate Prediction*
(arXiv 1809.03672), and "equation" below refers to it.

Inputs on which the listing fails have results too: an empty history gives the zero interest vector
and a zero gradient, an auxiliary loss without a valid step is 0, and a batch of one or none keeps its
batch dimension.
"""

from dien_fast.reference.base import ClickModel
from dien_fast.reference.dien import DIEN
from dien_fast.reference.gru import AttentionGRUCell, AttentionUpdateGateGRUCell, DynamicGRU
from dien_fast.reference.interest import Attention, AuxiliaryNet, Interest

__all__ = [
    "DIEN",
    "Attention",
    "AttentionGRUCell",
    "AttentionUpdateGateGRUCell",
    "AuxiliaryNet",
    "ClickModel",
    "DynamicGRU",
    "Interest",
]
