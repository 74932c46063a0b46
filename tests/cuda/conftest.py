"""The operators of csrc/cuda over the emulated kernels."""

import ctypes

import pytest
import torch
from emulator.build import build_operators, find_compiler
from interest_operators import use_operators

ORDERS = {"forward": 0, "reverse": 1, "random": 2}


@pytest.fixture(scope="session")
def library():
    """The path of the library."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    path = build_operators()
    torch.ops.load_library(path)
    return path


@pytest.fixture(scope="session")
def operators(library):
    return torch.ops.dien_fast_emulated


@pytest.fixture
def configure(library):
    """Chooses the order in which the emulator runs threads, and the device's numbers, for this test."""
    set_up = ctypes.CDLL(library).configure_emulator
    set_up.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_int, ctypes.c_int, ctypes.c_int64]

    def choose(order="forward", seed=0, multiprocessors=4, shared_bytes=227 * 1024, chunk_bytes=1 << 40):
        set_up(ORDERS[order], seed, multiprocessors, shared_bytes, chunk_bytes)

    yield choose
    choose()


@pytest.fixture
def emulated(operators, monkeypatch):
    """Makes the public functions of the operators, on tensors of the CPU, run the emulated kernels."""
    return use_operators(operators, monkeypatch)
