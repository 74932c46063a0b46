"""benchmarks/gpu_layer.py: what it counts of the plain path, and what it says of the kernels."""

import json

import gpu_layer
import pytest
import torch


@pytest.mark.parametrize("function", gpu_layer.PASSES)
def test_the_committed_counts_are_those_of_this_code(function):
    """Otherwise `python benchmarks/gpu_layer.py --count` is to be run again."""
    small, large = (gpu_layer.count(function, 32, rows) for rows in (500, 1000))
    moved, kept = ((b - a) / 500 for a, b in zip(small, large, strict=True))
    committed = json.loads(gpu_layer.COUNTS.read_text())[f"{function}-32"]
    assert moved == pytest.approx(committed["moved"], rel=0.01)
    assert kept == pytest.approx(committed["kept"], rel=0.01)


def test_a_product_counts_what_it_reads_and_writes():
    """Of the auxiliary net, the products alone read and write less than all of the plain path."""
    depth = 64
    products = sum(one.numbers for one in gpu_layer.loss_passes(depth) if one.operations)
    assert 4 * products < gpu_layer.plain("loss", depth)["moved"]


def test_the_slower_of_memory_and_arithmetic_counts():
    of_memory, of_arithmetic = gpu_layer.Pass(10).seconds(1e6, 50), gpu_layer.Pass(0, 1e4, 64).seconds(1e6, 50)
    assert gpu_layer.Pass(10, 1e4, 64).seconds(1e6, 50) == max(of_memory, of_arithmetic) == of_arithmetic
    assert gpu_layer.Pass(10, 10, 64).seconds(1e6, 50) == of_memory


def test_tiles_that_are_not_full_take_longer():
    full, partly = (gpu_layer.Pass(1, 1e4, columns, own_tiles=True) for columns in (64, 80))
    assert partly.seconds(1e6, 128) == pytest.approx(128 / 80 * full.seconds(1e6, 128))
    assert full.seconds(1e6, 32) == pytest.approx(2 * full.seconds(1e6, 64))


def test_counting_leaves_no_mode_behind():
    gpu_layer.count("loss", 32, 100)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
