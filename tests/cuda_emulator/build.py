"""Compiles the kernels of csrc/cuda and the emulator into a Python module, cached by the content of the sources."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAME = "dien_fast_cuda_emulated"
# The device contracts products and sums too; -march=native has the instruction for it.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=fast",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]


def find_compiler():
    """The C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def build(sources=ROOT / "csrc"):
    """Return the path of the module for the kernels under ``sources``, built if it is not there yet."""
    import pybind11

    cache = Path(os.environ.get("DIEN_FAST_CACHE") or ROOT / ".cache") / "cuda_emulator"
    includes = [f"-I{HERE / 'platform'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    units = {path: [path, *sources.rglob("*.cuh"), *sources.rglob("*.h")] for path in sources.glob("cuda/*.cu")}
    own = [HERE / "emulator.h", *HERE.glob("platform/*.h")]
    for path in (HERE / "emulator.cpp", HERE / "module.cpp"):
        units[path] = [path, ROOT / "csrc" / "attention_gru.h", ROOT / "csrc" / "cuda" / "attention_gru_cuda.h"]
    objects = {}
    for path, needs in units.items():
        content = hashlib.sha256(" ".join([find_compiler(), *FLAGS]).encode())
        for need in sorted([*needs, *own], key=lambda p: p.name):
            content.update(need.name.encode() + need.read_bytes())
        objects[path] = cache / f"{path.stem}-{content.hexdigest()[:20]}.o"
    together = hashlib.sha256(" ".join(sorted(o.name for o in objects.values())).encode())
    module = cache / together.hexdigest()[:20] / (NAME + sysconfig.get_config_var("EXT_SUFFIX"))
    if module.exists():
        return module

    module.parent.mkdir(parents=True, exist_ok=True)

    def compile_unit(item):
        path, target = item
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.o")  # another process may build the same
            language = ["-x", "c++"]
            command = [find_compiler(), *FLAGS, *includes, *language, "-c", path, "-o", partial]
            subprocess.run(command, check=True)
            partial.rename(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_unit, objects.items()))
    partial = module.with_suffix(f".{os.getpid()}")
    subprocess.run([find_compiler(), "-shared", *objects.values(), "-o", partial], check=True)
    partial.rename(module)
    return module


def load(path):
    """Import the module at ``path``."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
