"""The modules: drop-in equals of those in :mod:`dien_fast.reference`, faster and for ragged input too."""

from dien_fast.nn.attention import Attention
from dien_fast.nn.auxiliary import AuxiliaryNet
from dien_fast.nn.embedding import Embedding
from dien_fast.nn.gru import AttentionGRUCell, AttentionUpdateGateGRUCell, DynamicGRU
from dien_fast.nn.interest import Interest
from dien_fast.reference.layers import MLP, Dice, MaxPooling, SumPooling

__all__ = [
    "MLP",
    "Attention",
    "AttentionGRUCell",
    "AttentionUpdateGateGRUCell",
    "AuxiliaryNet",
    "Dice",
    "DynamicGRU",
    "Embedding",
    "Interest",
    "MaxPooling",
    "SumPooling",
]
