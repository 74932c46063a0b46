from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import dien_fast.data


@pytest.mark.parametrize("name", dien_fast.data.__all__)
def test_public_names_are_found_and_documented(name: str) -> None:
    assert getattr(dien_fast.data, name).__doc__
    assert name in dir(dien_fast.data)


def test_other_names_are_not_found() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dien_fast.data.nothing


@pytest.mark.parametrize("module", sorted(set(dien_fast.data._MODULES.values())))
def test_examples(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dien_fast.data.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"CategoryEncoder needs pyarrow: pip install 'dien-fast\[train\]'"):
        _ = dien_fast.data.CategoryEncoder


def test_other_import_faults_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="other"):
        _ = dien_fast.data.CategoryEncoder


def test_the_data_layer_knows_nothing_of_training() -> None:
    for path in Path(dien_fast.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.startswith("dien_fast.training") for module in modules), path
