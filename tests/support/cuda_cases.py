"""Calls of the recurrence's CUDA kernels in every layout, and what they must compute.

Shared by the tests of the kernels on a GPU, under the emulator (operators too) and in the simulator.
"""

import torch
from comparison import assert_within_twice
from recurrence_cases import problem

import dien_fast
from dien_fast.functional import attention_gru

LAYOUTS = ("padded", "ragged", "packed")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (B, T, I, H): one of everything, odd sizes, one tile and many, one block of columns and several.
SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 3, 18),
    (13, 63, 36, 36),
    (257, 5, 5, 3),
    (9, 4, 20, 100),
    (11, 3, 33, 128),
    (3, 3, 7, 257),
]
# (B, T, I, H) without a history, without a step, without an input.
EMPTY = [(0, 3, 2, 5), (3, 0, 2, 5), (3, 4, 0, 5)]


def in_layout(leaves, lengths, layout):
    """The leaves of a padded problem in a layout, and the arguments that tell it; padding becomes NaN."""
    x, att, h0 = leaves["x"], leaves["att"], leaves["h0"]
    longest = x.size(1)
    valid = torch.arange(longest) < lengths.unsqueeze(1)
    if layout == "padded":
        arguments = {"lengths": lengths}
        x = x.detach().masked_fill(~valid.unsqueeze(2), torch.nan)
        att = None if att is None else att.detach().masked_fill(~valid, torch.nan)
    elif layout == "ragged":
        arguments = {"offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])}
        x, att = x.detach()[valid], None if att is None else att.detach()[valid]
    else:
        order = torch.argsort(lengths, descending=True, stable=True)
        arguments = {"batch_sizes": torch.tensor([n for n in valid.sum(0).tolist() if n], dtype=torch.int64)}
        keep = valid[order].t()
        x = x.detach()[order].transpose(0, 1)[keep]
        att = None if att is None else att.detach()[order].transpose(0, 1)[keep]
        if h0 is not None:
            h0 = h0.detach()[order]
    found = leaves | {"x": x, "att": att, "h0": h0}
    return {k: None if v is None else v.detach().requires_grad_() for k, v in found.items()}, arguments


def make(shape, cell, layout, dtype, optional=True):
    leaves, lengths = problem(shape, cell, dtype, bias=optional, initial=optional)
    if shape[0] > 1:
        lengths[-1] = 0
    if shape[1] > 8 and leaves["att"] is not None:
        # Outside of [0, 1] it magnifies from step to step what rounding did, in agru above all, so that the
        # ratio of two errors is luck.
        leaves["att"] = leaves["att"].sigmoid()
    return in_layout(leaves, lengths, layout)


def empty(shape, layout):
    """Leaves and arguments of one of the EMPTY shapes, of augru in float64."""
    batch, steps, inputs, hidden = shape
    leaves, lengths = problem((max(batch, 1), max(steps, 1), max(inputs, 1), hidden), "augru")
    leaves["x"] = leaves["x"][:batch, :steps, :inputs]
    leaves["att"] = leaves["att"][:batch, :steps]
    leaves["h0"] = leaves["h0"][:batch]
    leaves["weight_ih"] = leaves["weight_ih"][:, :inputs]
    return in_layout(leaves, lengths.clamp(max=steps)[:batch], layout)


def outside(cell, layout):
    """Leaves, arguments and gradients whose lengths or offsets point outside of the arrays, padded or ragged."""
    leaves, arguments = make((6, 4, 3, 9), cell, layout, torch.float32)
    name = {"padded": "lengths", "ragged": "offsets"}[layout]
    arguments[name][:5] = torch.tensor([-7, 2**62, -(2**63), 2**63 - 1, 3])
    inside = {"lengths": arguments[name].clamp(0, 4)} if layout == "padded" else arguments
    return leaves, arguments, incoming(leaves, inside)


def incoming(leaves, arguments, states=True):
    """Gradients of states and last states, as the sums of losses at both give them; NaN at padding."""
    x, hidden = leaves["x"], leaves["weight_hh"].size(1)
    if "batch_sizes" in arguments:
        sizes = arguments["batch_sizes"]
        batch = leaves["h0"].size(0) if leaves["h0"] is not None else int(sizes[0]) if len(sizes) else 0
    else:
        batch = arguments["lengths"].numel() if "lengths" in arguments else arguments["offsets"].numel() - 1
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(x.dtype)

    dstates = draw(*x.shape[:-1], hidden)
    if "lengths" in arguments:
        padding = torch.arange(x.size(1)) >= arguments["lengths"].unsqueeze(1)
        dstates = dstates.masked_fill(padding.unsqueeze(2), torch.nan)
    return {"dstates": dstates if states else None, "dlast": draw(batch, hidden)}


def reference(leaves, arguments, cell, gradients, dtype):
    """The loop's outcome, computed in ``dtype``."""
    cast = {k: None if v is None else v.detach().to(dtype).requires_grad_() for k, v in leaves.items()}
    with dien_fast.use_backend("reference"):
        states, last = attention_gru(**cast, **arguments, cell=cell)
    given = {name: value for name, value in cast.items() if value is not None}
    outputs = [(states, gradients["dstates"]), (last, gradients["dlast"])]
    # What depends on no leaf (there is no step) has no gradient to ask for.
    outputs = [(value, g.to(dtype)) for value, g in outputs if g is not None and value.requires_grad]
    found = [None] * len(given)
    if outputs:
        values, weights = zip(*outputs, strict=True)
        found = torch.autograd.grad(values, list(given.values()), weights, allow_unused=True)
    named = {f"d{name}": gradient for name, gradient in zip(given, found, strict=True)}
    named = {k: torch.zeros_like(given[k[1:]]) if v is None else v for k, v in named.items()}
    return {"states": states.detach(), "last": last.detach()} | named


def assert_close(got, leaves, arguments, cell, gradients):
    """Within rounding of the loop in float64; in lower precision, of the loop in the same dtype."""
    dtype = leaves["x"].dtype
    exact = reference(leaves, arguments, cell, gradients, torch.float64)
    exact = {name: value for name, value in exact.items() if name in got}
    if dtype == torch.float64:
        for name, value in exact.items():
            # The recurrence magnifies rounding: 5e-12 of the largest value was seen, after 63 steps.
            scale = max(1.0, value.abs().max().item() if value.numel() else 0.0)
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-11 * scale, msg=name)
    else:
        assert_within_twice(got, reference(leaves, arguments, cell, gradients, dtype), exact)


def largest_errors(got, leaves, arguments, cell, gradients):
    """The largest error of each value against the loop in float64, over the value's largest number or 1."""
    exact = reference(leaves, arguments, cell, gradients, torch.float64)
    return {
        name: (value.double() - exact[name]).abs().max().item() / max(1.0, exact[name].abs().max().item())
        for name, value in got.items()
        if value.numel()
    }
