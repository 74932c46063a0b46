"""What compiling needs: setup.py finds torch, a compiler and ninja, or says in one sentence what to do."""

import importlib.machinery
import importlib.util
import re
import runpy
import site
import subprocess
import sys

import pytest
import setuptools
from source_copy import COPYING_COMPILER, ROOT, build_environment, copy_sources

SETTINGS = ("DIEN_FAST_NATIVE", "DIEN_FAST_CUDA", "DIEN_FAST_SANITIZE", "CXX", "CUDA_HOME", "CUDA_PATH")


@pytest.fixture
def setup(monkeypatch):
    """The names of setup.py, without setting up anything."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """An isolated build: nothing of the environment can be imported, and its packages lie in a folder."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(site, "getsitepackages", lambda _: [str(tmp_path)])
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    importlib.machinery.PathFinder.invalidate_caches()
    return tmp_path


def put_torch(folder, version):
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").write_text("raise AssertionError('torch is not imported')")
    (torch / "version.py").write_text(f"from typing import Optional\n\n__version__ = '{version}'\ncuda = None\n")
    return torch


def test_the_torch_of_the_environment(setup):
    import torch

    assert str(setup["find_torch"]()) == torch.__path__[0]


@pytest.mark.parametrize("where", [".", "user"])
def test_the_torch_that_an_isolated_build_hides(setup, isolated, where):
    torch = put_torch(isolated / where, "2.10.0+cpu")
    assert setup["find_torch"]() == torch


def test_no_torch(setup, isolated):
    with pytest.raises(SystemExit) as stopped:
        setup["find_torch"]()
    assert str(stopped.value).startswith(
        f"dien-fast: the native library is compiled against torch, which is not installed for {sys.executable}: "
        "pip install 'torch>=2.10' and then this package again"
    )
    assert "DIEN_FAST_NATIVE=0" in str(stopped.value)


@pytest.mark.parametrize("version", ["2.9.1+cu130", "1.13.0"])
def test_an_old_torch(setup, isolated, version):
    torch = put_torch(isolated, version)
    number = ".".join(version.split(".")[:2])
    with pytest.raises(SystemExit, match=rf"^dien-fast: {torch} is torch {number}, and must be 2\.10 or newer"):
        setup["find_torch"]()


def test_no_compiler(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"^dien-fast: no C\+\+ compiler was found: .* DIEN_FAST_NATIVE=0 installs"
    ):
        setup["find_tools"]()


def test_no_ninja(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(SystemExit, match=r"^dien-fast: ninja was not found, .*: pip install ninja$"):
        setup["find_tools"]()


def test_no_nvcc(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "c++")
    assert setup["find_tools"]().nvcc is None
    monkeypatch.setenv("DIEN_FAST_CUDA", "1")
    with pytest.raises(
        SystemExit, match=r"^dien-fast: no nvcc was found for the CUDA kernels that DIEN_FAST_CUDA=1"
    ):
        setup["find_tools"]()


def test_old_setuptools(monkeypatch):
    monkeypatch.setattr(setuptools, "__version__", "65.5.0")
    with pytest.raises(
        SystemExit, match=r"^dien-fast: setuptools must be 77 or newer, found 65\.5\.0: pip install -U"
    ):
        runpy.run_path(str(ROOT / "setup.py"))


def build(folder, command, **environment):
    """Run a command of setup.py, without the compilers that PATH has."""
    environment = {"PATH": str(folder / "empty"), "HOME": str(folder)} | environment
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_sentence_is_all_that_a_build_says(tmp_path):
    """pip asks for the metadata first, and shows what that writes."""
    copy = copy_sources(tmp_path)
    for command in (["dist_info"], ["build_ext", "--inplace"]):
        stopped = build(copy, command)
        assert stopped.returncode == 1
        assert re.fullmatch(r"dien-fast: no C\+\+ compiler was found: [^\n]*\n", stopped.stderr), stopped.stderr
        assert not build(copy, command, DIEN_FAST_NATIVE="0").returncode
    assert not list(copy.rglob("*.so"))


def test_in_place_without_the_cuda_kernels(tmp_path):
    """As pip install -e does where there is no nvcc."""
    copy = copy_sources(tmp_path)
    environment = build_environment(copy, COPYING_COMPILER)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=copy, env=environment, check=True
    )
    assert [path.name for path in (copy / "dien_fast").rglob("*.so")] == ["libdien_fast_cpu.so"]


def test_a_build_after_an_editable_one_compiles_nothing_again(tmp_path):
    copy = copy_sources(tmp_path)
    environment = build_environment(copy, COPYING_COMPILER)
    build_editable = "import setuptools.build_meta as build; build.build_editable('dist')"
    subprocess.run(
        [sys.executable, "-c", build_editable], cwd=copy, env=environment, capture_output=True, check=True
    )
    compiled = {path: path.stat().st_mtime_ns for path in copy.glob("build/temp.*/cpu/*.o")}
    assert len(compiled) > 10
    for command in ("build", "build_ext --inplace"):
        run = [sys.executable, "setup.py", "-q", *command.split()]
        subprocess.run(run, cwd=copy, env=environment, capture_output=True, check=True)
        assert compiled == {path: path.stat().st_mtime_ns for path in copy.glob("build/temp.*/cpu/*.o")}


def test_a_library_that_does_not_compile(tmp_path):
    copy = copy_sources(tmp_path)
    stopped = build(copy, ["build_ext", "--inplace"], CXX="/bin/false", DIEN_FAST_CUDA="0")
    assert stopped.returncode == 1
    sentence = r"dien-fast: the native library does not compile, [^\n]*\n"
    assert re.fullmatch(sentence, stopped.stderr), stopped.stderr
