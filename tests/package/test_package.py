"""What ``import dien_fast`` offers, and what it must not import."""

import importlib
import subprocess
import sys

import pytest

import dien_fast

CORE = [
    "AttentionGRUCell",
    "AttentionUpdateGateGRUCell",
    "DynamicGRU",
    "Attention",
    "AuxiliaryNet",
    "MLP",
    "Dice",
    "MaxPooling",
    "SumPooling",
    "Interest",
    "AttentionGroup",
    "DIEN",
    "DIN",
    "DSIN",
    "Ragged",
]
LAZY = ["CategoryEncoder", "SequenceEncoder", "load"]
OTHERS = ["__version__", "backend", "use_backend", "accelerate", "restore"]
OTHERS += ["DienFastError", "DataError", "CheckpointError"]
REFERENCE = [
    "ClickModel",
    "AttentionGRUCell",
    "AttentionUpdateGateGRUCell",
    "DynamicGRU",
    "Attention",
    "AuxiliaryNet",
    "Interest",
    "DIEN",
]


@pytest.mark.parametrize("name", CORE + LAZY)
def test_public_names(name):
    assert callable(getattr(dien_fast, name))
    assert name in dien_fast.__all__
    assert name in dir(dien_fast)


def test_reference_names():
    assert sorted(dien_fast.reference.__all__) == sorted(REFERENCE)
    assert all(hasattr(dien_fast.reference, name) for name in REFERENCE)


def test_no_other_name_is_public():
    assert sorted(dien_fast.__all__) == sorted([*CORE, *LAZY, *OTHERS])
    assert all(hasattr(dien_fast, name) for name in dien_fast.__all__)


def test_importing_the_package_imports_no_extra_and_nothing_of_training():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"  # torch itself imports tqdm and others where they are installed
        "import dien_fast, dien_fast.functional, dien_fast.data\n"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "dien_fast.data" in loaded
    extras = {"accelerate", "filelock", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn", "tqdm"}
    own = {"dien_fast.cli", "dien_fast.training", "dien_fast.data.encoders", "dien_fast.patches"}
    assert not loaded & (extras | own)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'dien_fast' has no attribute 'Attentoin'"):
        dien_fast.Attentoin  # noqa: B018


def failing_import(monkeypatch, missing):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize("name", LAZY)
def test_a_missing_extra_is_named(name, monkeypatch):
    failing_import(monkeypatch, "pyarrow")
    message = rf"dien_fast\.{name} needs pyarrow, which is not installed: pip install 'dien-fast\[train\]'"
    with pytest.raises(ImportError, match=message):
        getattr(dien_fast, name)


def test_a_missing_module_of_our_own_is_not_blamed_on_an_extra(monkeypatch):
    failing_import(monkeypatch, "dien_fast.training.runs")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'dien_fast\.training\.runs'"):
        dien_fast.load  # noqa: B018


def test_backend_prints_what_runs():
    found = dien_fast.backend()
    assert found.name in ("native", "reference")
    assert str(found) == f"{found.name} ({found.detail})"
    assert len(found.detail) > 10


def test_errors_have_one_base():
    for error in (dien_fast.DataError, dien_fast.CheckpointError):
        assert issubclass(error, dien_fast.DienFastError)
    assert issubclass(dien_fast.DienFastError, ValueError)
