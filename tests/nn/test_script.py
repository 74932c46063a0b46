"""TorchScript: the cells and DynamicGRU, scripted, saved, and loaded without their classes by another process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import Forked
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import dien_fast
from dien_fast import AttentionGRUCell, AttentionUpdateGateGRUCell, DynamicGRU, reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript ends with Python 3.13"),
    pytest.mark.usefixtures("_float64"),
]
LENGTHS = torch.tensor([3, 1, 5, 2, 5])
B, T, I, H = 5, 5, 3, 4  # noqa: E741


def run_saved(directory):
    """Load every module, run it forward and backward on its arguments, keep what comes out."""
    found = {}
    for name, arguments in torch.load(directory / "arguments.pt").items():
        arguments = [value if torch.is_tensor(value) else PackedSequence(*value) for value in arguments]
        module = torch.jit.load(directory / f"{name}.pt")
        result = module(*arguments)
        result = result if torch.is_tensor(result) else result.data
        found[name] = [result, *torch.autograd.grad(result.square().sum(), list(module.parameters()))]
    torch.save(found, directory / "found.pt")


def packed():
    values = torch.randn(B, T, I), torch.randn(B, T)
    return [pack_padded_sequence(value, LENGTHS, batch_first=True, enforce_sorted=False) for value in values]


def modules():
    """Modules by name, each with arguments."""
    found = {}
    for bias in (True, False):
        for cell in (AttentionGRUCell, AttentionUpdateGateGRUCell):
            module = cell(I, H, bias)
            found[f"{cell.__name__}-{bias}"] = (module, [torch.randn(B, I), torch.randn(B, H), torch.randn(B)])
        for gru_type in ("AGRU", "AUGRU"):
            for library in (DynamicGRU, reference.DynamicGRU):
                module = library(I, H, bias, gru_type)
                found[f"{library.__module__}-{gru_type}-{bias}"] = (module, packed())
                found[f"{library.__module__}-{gru_type}-{bias}-hx"] = (module, [*packed(), torch.randn(B, H)])
    return found


def test_another_process_gives_the_same_numbers(tmp_path):
    expected, given = {}, {}
    for name, (module, arguments) in modules().items():
        torch.jit.script(module).save(tmp_path / f"{name}.pt")
        result = module(*arguments)
        result = result if torch.is_tensor(result) else result.data
        expected[name] = [result, *torch.autograd.grad(result.square().sum(), list(module.parameters()))]
        given[name] = [value if torch.is_tensor(value) else tuple(value) for value in arguments]
    torch.save(given, tmp_path / "arguments.pt")
    process = Forked(run_saved, tmp_path)
    assert process.wait() == 0, process.printed()
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == expected.keys()
    for name, values in found.items():
        for value, want in zip(values, expected[name], strict=True):
            torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("library", [DynamicGRU, reference.DynamicGRU], ids=["fast", "reference"])
def test_sequences_packed_differently_are_refused(library):
    module = torch.jit.script(library(I, H))
    x, _ = packed()
    other = pack_padded_sequence(
        torch.randn(B, T), torch.tensor([4, 1, 4, 2, 5]), batch_first=True, enforce_sorted=False
    )
    with pytest.raises(torch.jit.Error, match=r"packed with the lengths of x, \[5, 4, 3, 2, 2\] ... histories"):
        module(x, other)


def test_without_the_library(tmp_path):
    """DynamicGRU can be scripted from a package without the native library; it runs the loop."""
    package = Path(dien_fast.__file__).parent
    shutil.copytree(package, tmp_path / "dien_fast", ignore=shutil.ignore_patterns("_native", "__pycache__"))
    code = (
        "import torch, dien_fast\n"
        "from torch.nn.utils.rnn import pack_sequence\n"
        "assert dien_fast.backend().name == 'reference'\n"
        "gru = dien_fast.DynamicGRU(3, 4, gru_type='AUGRU')\n"
        "x = pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])\n"
        "att = pack_sequence([torch.rand(3), torch.rand(2)])\n"
        "scripted, eager = torch.jit.script(gru)(x, att).data, gru(x, att).data\n"
        "assert torch.equal(scripted, eager)\n"
        "scripted.sum().backward()\n"
        "assert gru.rnn.weight_hh.grad.abs().sum() > 0\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "DIEN_FAST_BACKEND": "reference"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
