"""Accelerated models that were pickled before modules moved, at commit a342503, load and compute the same."""

import importlib
import subprocess
import sys
from pathlib import Path

import copies  # the pickles name its classes
import pytest
import torch

import dien_fast
from dien_fast import reference
from dien_fast._moved import MOVED
from dien_fast.patches.swap import Accelerated

PICKLES = Path(__file__).parent / "pickles"


@pytest.mark.parametrize(
    ("name", "original", "fast"),
    [("copy-of-the-listing", copies.Interest, "layer"), ("reference-interest", reference.Interest, "")],
)
def test_an_old_pickle_is_fast_and_computes_the_same(name, original, fast):
    old = torch.load(PICKLES / f"{name}.pt", weights_only=False)
    model = old["model"]
    layer = model.get_submodule(fast)
    assert isinstance(layer, Accelerated)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        outputs = model(*old["inputs"])
    assert any(event.key.startswith("dien_fast::attention_gru") for event in profile.key_averages())
    torch.testing.assert_close(outputs, old["outputs"])
    dien_fast.restore(model)
    assert type(model.get_submodule(fast)) is original


def test_an_old_pickle_loads_without_an_import_of_this_package_before():
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); old = torch.load(sys.argv[2], weights_only=False); "
        "print(type(old['model'].layer).__mro__[1].__name__)"
    )
    arguments = [str(Path(copies.__file__).parent), str(PICKLES / "copy-of-the-listing.pt")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "ListingInterest\n"


# What a pickle of any of the libraries' models could name, besides modules that are where they were.
OLD_CLASSES = {
    "dien_fast.attention_group": ["AttentionGroup"],
    "dien_fast.layers": ["MLP", "Dice", "MaxPooling", "SumPooling"],
    "dien_fast.patches.cells": ["CellRule"],
    "dien_fast.patches.deepctr_torch": ["Extractor", "Evolving"],
    "dien_fast.patches.fuxictr": ["BilinearAttention", "Model"],
    "dien_fast.patches.layers": ["Inside"],
    "dien_fast.patches.listing": ["Details", "ListingInterest"],
    "dien_fast.patches.recbole": ["Extractor", "Evolving"],
    "dien_fast.patches.recurrence": ["Loop", "PackedGRU", "PackedLoop"],
    "dien_fast.patches.swap": ["_rebuild"],
    "dien_fast.patches.torch_rechub": ["PaddedLoop", "Model"],
}


@pytest.mark.parametrize("module", OLD_CLASSES)
def test_old_names_are_the_present_classes(module):
    found = importlib.import_module(module)
    for name in OLD_CLASSES[module]:
        cls = getattr(found, name)
        assert getattr(importlib.import_module(cls.__module__), name) is cls
    assert found.__spec__.name == MOVED.get(module, module)


def test_every_moved_module_is_tested():
    assert MOVED.keys() <= OLD_CLASSES.keys()


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'dien_fast\.patches\.lisitng'"):
        importlib.import_module("dien_fast.patches.lisitng")
