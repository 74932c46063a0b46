"""Calls of attention_gru on shapes that hurt, and everything that a backend computes from them."""

import torch

import dien_fast
from dien_fast.functional import GATES, attention_gru

# (B, T, I, H): one of everything, odd sizes, whole and broken vectors, many tiles, more rows than a chunk.
SHAPES = [(1, 1, 1, 1), (3, 2, 3, 18), (13, 63, 36, 36), (257, 5, 5, 3), (30, 20, 64, 64), (4, 6, 20, 257)]


def problem(shape, cell, dtype=torch.float64, bias=True, initial=True):
    """Leaves of one call, scaled so that the recurrence is not chaotic, and its lengths: 0 and T among them."""
    batch, steps, inputs, hidden = shape
    rows = GATES[cell] * hidden
    generator = torch.Generator().manual_seed(0)

    def draw(*size, scale=1.0):
        value = scale * torch.randn(*size, generator=generator, dtype=torch.float64)
        return value.to(dtype).requires_grad_()

    lengths = torch.randint(0, steps + 1, (batch,), generator=generator)
    lengths[0] = steps
    leaves = {
        "x": draw(batch, steps, inputs),
        "att": None if cell == "gru" else draw(batch, steps, scale=0.5),
        "weight_ih": draw(rows, inputs, scale=inputs**-0.5),
        "weight_hh": draw(rows, hidden, scale=0.6 * hidden**-0.5),
        "bias_ih": draw(rows) if bias else None,
        "bias_hh": draw(rows) if bias else None,
        "h0": draw(batch, hidden) if initial else None,
    }
    return leaves, lengths


def outcome(backend, leaves, lengths, cell):
    """States, last states and every gradient, by name."""
    with dien_fast.use_backend(backend):
        states, last = attention_gru(**leaves, lengths=lengths, cell=cell)
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)).sum()
            for value in (states, last)
        )
        given = {name: value for name, value in leaves.items() if value is not None}
        gradients = torch.autograd.grad(loss, list(given.values()))
    return {"states": states, "last": last} | {f"d{name}": g for name, g in zip(given, gradients, strict=True)}
