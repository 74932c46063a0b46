"""A copy of the sources to build and install from, so that builds leave nothing in the repository."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(folder):
    """Copy into ``folder`` what the package is built from; return the copy."""
    copy = folder / "dien-fast"
    for name in ("csrc", "dien_fast"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def quick_build(folder):
    """Return an environment that compiles without optimisation, a third of the time, and without CUDA, minutes."""
    compiler = folder / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    return os.environ | {"CXX": str(compiler), "DIEN_FAST_CUDA": "0"}
