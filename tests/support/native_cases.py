"""What the tests of the interest layer over the native operators share."""

import os

import pytest
import torch
from comparison import assert_same, outcome
from interest_layers import forward, inputs, pair
from torch import nn

from dien_fast.reference.layers import Dice

needs_native = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
LENGTHS = [3, 0, 7, 1, 7, 2]
T, D = 7, 5
ACTIVATIONS = ["linear", "relu", "prelu", "sigmoid", "dice"]


def layers_of(gru_type="AUGRU", dtype=torch.float64, size=D, scatter=True, **options):
    """The reference and the fast layer, with parameters and buffers that are not what they start as."""
    eager, fast = pair(gru_type, dtype, size, **{"att_hidden_layers": [7, 4], "use_negsampling": True} | options)
    if scatter:
        with torch.no_grad():
            for module in eager.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 2)
                    module.weight.add_(0.3 * torch.randn_like(module.weight))
                    module.bias.normal_(std=0.3)
                if isinstance(module, Dice):
                    module.alpha.normal_(std=0.3)
    fast.load_state_dict(eager.state_dict())
    return eager, fast


def batch(lengths=LENGTHS, steps=T, size=D, dtype=torch.float64):
    """Query, keys and negatives by name, NaN behind a history's end; and the lengths."""
    return inputs(lengths, steps, size, dtype)


def compare(eager, fast, lengths=LENGTHS, layout="ragged", steps=T, size=D):
    """Outputs, auxiliary loss, every gradient and every buffer."""
    leaves, lengths = batch(lengths, steps, size)
    want = outcome(eager, lambda: forward(eager, leaves, lengths, "reference"), leaves)
    got = outcome(fast, lambda: forward(fast, leaves, lengths, layout), leaves)
    assert_same(got, want, 1e-9, 1e-9)
    return got
