"""The native kernels compute without denormal numbers, and torch with them as before and after."""

import os

import pytest
import torch

from dien_fast.functional import attention_gru

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
STEPS, HIDDEN, BATCH = 140, 8, 64


def halved(dtype):
    """Return states ``[B, T, H]`` of which each is half of the one before, and the gradient of the first, 1."""
    h0 = torch.ones(BATCH, HIDDEN, dtype=dtype, requires_grad=True)
    none = torch.zeros(3 * HIDDEN, HIDDEN, dtype=dtype)
    x, lengths = torch.zeros(BATCH, STEPS, HIDDEN, dtype=dtype), torch.full((BATCH,), STEPS)
    states, last = attention_gru(x, None, none, none, h0=h0, lengths=lengths, cell="gru")
    last.sum().backward()
    return states.detach(), h0.grad


def keeps_denormals():
    """Return whether torch's threads keep them; more numbers than one of its threads takes."""
    smallest = torch.finfo(torch.float32).tiny
    return bool((torch.full((1_000_000,), smallest) / 2 > 0).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_no_denormal_is_computed(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert keeps_denormals()
        states, gradient = halved(torch.float32)
        assert keeps_denormals()
    finally:
        torch.set_num_threads(before)
    smallest = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(states[:, 100], torch.full((BATCH, HIDDEN), 2.0**-101), rtol=1e-4, atol=0)
    # Without fused multiply-adds, states stay at the smallest: half of it, which a step takes away, is zero.
    assert (states[:, 127:] <= 2 * smallest).all()
    for numbers in (states, gradient):
        assert ((numbers == 0) | (numbers >= smallest)).all()


def test_float64_reaches_further():
    states, gradient = halved(torch.float64)
    torch.testing.assert_close(states[:, -1], torch.full_like(gradient, 2.0**-STEPS), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2.0**-STEPS), rtol=1e-9, atol=0)
