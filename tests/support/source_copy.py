"""A copy of the sources to build and install from, so that builds leave nothing in the repository."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "dien_fast/_native/libdien_fast_cpu.so"

# Compiles nothing; in place of linking it copies the library that this repository has built already.
COPYING_COMPILER = """#!/bin/sh
for argument; do
  case $before in -o) out=$argument;; -MF) dependencies=$argument;; esac
  before=$argument
done
case " $* " in
  *" -shared "*) cp {library} "$out";;
  *) : >"$out"; echo "$out:" >"$dependencies";;
esac
"""
# A third of the time.
UNOPTIMISED_COMPILER = """#!/bin/sh
exec {compiler} "$@" -O0
"""


def copy_sources(folder):
    """Copy into ``folder`` what the package is built from; return the copy."""
    copy = folder / "dien-fast"
    for name in ("csrc", "dien_fast"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "dien_fast_command.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def build_environment(folder, script):
    """Return an environment in which a build without CUDA uses a compiler of the above, written to ``folder``."""
    compiler = folder / "compiler"
    compiler.write_text(script.format(library=ROOT / LIBRARY, compiler=os.environ.get("CXX", "c++")))
    compiler.chmod(0o755)
    return os.environ | {"CXX": str(compiler), "DIEN_FAST_CUDA": "0"}
