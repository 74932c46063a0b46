"""Which tensors an operator's kernels take: what the loaded libraries register, and nothing else."""

import os

import pytest
import torch

from dien_fast import use_backend
from dien_fast.ops import attention_gru, attention_scores, backend, rows
from dien_fast.ops.backend import Kernels

DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32,)}
needs_native = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def test_dtypes():
    kernels = Kernels("attention_scores", DTYPES)
    single, double, half = (torch.zeros(2, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.half))
    assert kernels.take(single)
    assert kernels.take(double, double)
    assert not kernels.take(half)
    assert not kernels.take(single, double)
    assert not kernels.take(single, single, double)


def test_devices():
    kernels = Kernels("attention_scores", DTYPES)
    here, elsewhere = torch.zeros(2), torch.zeros(2, device="meta")
    assert not kernels.take(elsewhere)
    assert not kernels.take(here, elsewhere)


@needs_native
def test_registered_kernels_are_used():
    """A library that registers an operator's kernels for a device is all that the device needs."""
    name = "attention_scores"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"dien_fast::{name}", "CUDA"):
        pytest.skip("has kernels for CUDA")
    assert Kernels(name, DTYPES).dtypes.keys() == {"cpu"}
    library = torch.library.Library("dien_fast", "IMPL", "CUDA")
    try:
        library.impl(name, lambda *_: None)
        assert Kernels(name, DTYPES).dtypes == {device: frozenset(taken) for device, taken in DTYPES.items()}
    finally:
        library._destroy()
    assert Kernels(name, DTYPES).dtypes.keys() == {"cpu"}


def test_without_a_library_the_cpu_stays(monkeypatch):
    """So that the backend is asked for, which warns that the library is missing."""
    monkeypatch.setattr(backend, "LOADED", False)
    assert Kernels("attention_scores", DTYPES).dtypes.keys() == {"cpu"}


@needs_native
def test_backend_is_asked():
    with use_backend("reference"):
        assert not attention_gru.KERNELS.are_used(torch.zeros(2))
    assert attention_gru.KERNELS.are_used(torch.zeros(2))


@needs_native
def test_operators():
    integers, single, complex_numbers = torch.arange(2), torch.zeros(2), torch.zeros(2, dtype=torch.complex64)
    assert rows.COPY_KERNELS.take(integers)
    assert rows.COPY_KERNELS.take(single)
    assert not rows.COPY_KERNELS.take(complex_numbers)
    for kernels in (attention_scores.KERNELS, attention_gru.KERNELS, rows.SUM_KERNELS, rows.ADD_KERNELS):
        assert kernels.take(single)
        assert not kernels.take(integers)
