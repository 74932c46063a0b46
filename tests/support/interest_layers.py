"""The interest layer beside its reference: the same layer twice, inputs for both, and how each is called."""

import torch
from torch import nn

from dien_fast import Interest, Ragged, reference

GRU_TYPES = ["GRU", "AIGRU", "AGRU", "AUGRU"]
LENGTHS = [3, 0, 5, 1, 5, 2]
T, D = 5, 3


class FAST:
    """The fast layer under the name that the reference has."""

    Interest = Interest


def pair(gru_type, dtype=torch.float64, size=D, prepare=lambda layer: None, **options):
    """The same layer twice: the reference and the fast one."""
    options = {"gru_type": gru_type, "att_hidden_layers": [4, 3]} | options
    layers = [library.Interest(size, **options) for library in (reference, FAST)]
    layers[1].load_state_dict(layers[0].state_dict(), strict=True)
    for layer in layers:
        layer.to(dtype)
        prepare(layer)
    return layers


def inputs(lengths, steps=T, size=D, dtype=torch.float64):
    """Query, keys and negatives; what lies behind a history is NaN, so that reading it shows."""
    lengths = torch.tensor(lengths, dtype=torch.int64)
    padding = (torch.arange(steps) >= lengths[:, None])[:, :, None]
    query, keys, negatives = (
        torch.randn(len(lengths), *shape) for shape in ((size,), (steps, size), (steps, size))
    )
    found = {
        "query": query,
        "keys": keys.masked_fill(padding, torch.nan),
        "negatives": negatives.masked_fill(padding, torch.nan),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in found.items()}, lengths


def forward(layer, leaves, lengths, layout, max_length=None):
    """Call a layer; the reference computes its padding, so it gets zeros there."""
    query, keys = leaves["query"], leaves["keys"]
    negatives = leaves["negatives"] if layer.use_negsampling else None
    if layout == "reference":
        keys = keys.nan_to_num()
        negatives = None if negatives is None else negatives.nan_to_num()
        extra = max(0, (max_length or 0) - keys.size(1))
        keys, negatives = (
            None if value is None else nn.functional.pad(value, (0, 0, 0, extra)) for value in (keys, negatives)
        )
        return layer(query, keys, lengths, negatives)
    if layout == "padded":
        return layer(query, keys, lengths, negatives)
    keys, negatives = (
        None if value is None else Ragged.from_padded(value, lengths) for value in (keys, negatives)
    )
    if max_length is not None:
        keys = keys._replace(max_length=max_length)
    return layer(query, keys, None, negatives)
