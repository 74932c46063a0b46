"""Patching a library's construction, on a library that is made up here."""

import importlib.metadata
import importlib.util
import sys

import copies
import pytest
import torch
from equality import classes
from torch import nn

import dien_fast
from dien_fast import patches
from dien_fast.patches import construction, registry
from dien_fast.patches.libraries.article_listing import interest
from dien_fast.patches.library import Library, dynamic_gru
from dien_fast.patches.swap import Accelerated


@pytest.fixture
def library(monkeypatch):
    """A package ``shop_nets`` with the listing's classes, known under the name ``shop``."""
    spec = importlib.util.spec_from_file_location("shop_nets", copies.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "shop_nets", module)
    known = Library(
        "shop",
        "shop-nets",
        ("1.0",),
        ("shop_nets",),
        {("shop_nets", "DynamicGRU"): dynamic_gru, ("shop_nets", "Interest"): interest},
    )
    monkeypatch.setitem(registry.LIBRARIES, "shop", known)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "1.0" if n == "shop-nets" else version(n))
    yield module
    dien_fast.restore("shop")
    assert not construction._constructions


def test_models_made_afterwards(library):
    before = library.DynamicGRU(4, 5)
    original = library.DynamicGRU.__init__
    report = dien_fast.accelerate("shop")
    assert [entry.kind for entry in report.fast] == ["shop_nets.DynamicGRU", "shop_nets.Interest"]
    made = library.DynamicGRU(4, 5)
    assert isinstance(made, Accelerated)
    assert not isinstance(before, Accelerated)
    assert "recurrence agru" in str(report)
    assert library.DynamicGRU.__init__ is not original
    dien_fast.restore("shop")
    assert library.DynamicGRU.__init__ is original
    assert type(library.DynamicGRU(4, 5)) is library.DynamicGRU
    assert isinstance(made, Accelerated)
    dien_fast.restore(made)
    assert type(made) is library.DynamicGRU


def test_context_manager(library):
    original = library.Interest.__init__
    with dien_fast.accelerate("shop"):
        model = nn.Sequential(library.Interest(4))
        assert isinstance(model[0], Accelerated)
    assert library.Interest.__init__ is original
    assert type(library.Interest(4)) is library.Interest


def test_nothing_of_torch_changes(library):
    watched = (torch, torch.nn.functional, nn.Module, nn.GRU, nn.GRUCell, torch.Tensor)
    before = [dict(vars(owner)) for owner in watched]
    with dien_fast.accelerate("shop"):
        assert isinstance(library.Interest(4), Accelerated)
        for owner, names in zip(watched, before, strict=True):
            assert all(vars(owner)[name] is value for name, value in names.items()), owner


def test_twice_is_once(library):
    first = dien_fast.accelerate("shop")
    once = library.DynamicGRU.__init__
    with dien_fast.accelerate("shop") as second:
        assert not second
        assert "already" in str(second)
        assert library.DynamicGRU.__init__ is once
    assert library.DynamicGRU.__init__ is once
    with first:
        pass
    assert library.DynamicGRU.__init__ is not once


def test_a_report_of_the_past_does_not_undo_a_later_call(library):
    first = dien_fast.accelerate("shop")
    dien_fast.restore("shop")
    dien_fast.accelerate("shop")
    with first:
        pass
    assert isinstance(library.DynamicGRU(4, 5), Accelerated)


def test_somebody_else_patches_too(library):
    """What somebody put over the constructor stays; ours below it does nothing any more."""
    original = library.DynamicGRU.__init__
    dien_fast.accelerate("shop")
    ours = library.DynamicGRU.__init__
    library.DynamicGRU.__init__ = lambda self, *args, **kwargs: ours(self, *args, **kwargs)
    dien_fast.restore("shop")
    assert library.DynamicGRU.__init__ is not original
    assert type(library.DynamicGRU(4, 5)) is library.DynamicGRU


def test_subclasses_are_left(library):
    class Mine(library.DynamicGRU):
        pass

    dien_fast.accelerate("shop")
    loop = Mine(4, 5)
    assert type(loop) is Mine
    assert "a subclass of shop's DynamicGRU" in str(dien_fast.accelerate(loop))


def test_what_is_left_is_said_when_it_is_made(library):
    report = dien_fast.accelerate("shop")
    with pytest.warns(RuntimeWarning, match=r"dien_fast left shop_nets\.DynamicGRU.*none agrees"):
        loop = library.DynamicGRU(4, 5, cell=library.Squared)
    assert type(loop) is library.DynamicGRU
    assert "none agrees" in str(report)


def test_reports_do_not_keep_models_alive(library):
    import gc
    import weakref

    report = dien_fast.accelerate("shop")
    dead = weakref.ref(library.DynamicGRU(4, 5))
    gc.collect()
    assert dead() is None
    assert len(report.models) == 1


def test_another_version(library, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.1")
    loop = library.DynamicGRU(4, 5)
    report = dien_fast.accelerate(loop)
    assert "shop-nets must be 1.0, found 1.1" in str(report)
    assert type(loop) is library.DynamicGRU
    original = library.DynamicGRU.__init__
    report = dien_fast.accelerate("shop")
    assert not report
    assert "shop-nets must be 1.0, found 1.1" in str(report)
    assert library.DynamicGRU.__init__ is original


def test_a_copy_without_a_version(library, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    report = dien_fast.accelerate(library.DynamicGRU(4, 5))
    assert "found a copy without a version" in str(report)


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepctr_torch", None)
    with pytest.raises(
        ImportError, match=r"needs deepctr-torch, which is not installed: pip install deepctr-torch=="
    ):
        dien_fast.accelerate("deepctr-torch")
    assert not construction._constructions


def test_own_models_are_left_quietly():
    model = dien_fast.Interest(4)
    before = classes(model)
    report = dien_fast.accelerate(model)
    assert not report.fast
    assert not report.left
    assert classes(model) == before


def test_the_names_are_public():
    assert {"accelerate", "restore"} <= set(dien_fast.__all__)
    assert dien_fast.accelerate is patches.accelerate
