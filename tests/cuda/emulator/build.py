"""Compiles the kernels and operators of csrc/cuda with the emulator, cached by the content of the sources."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
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


def cached(name, flags, contents):
    """The path of an output in the cache, named after everything that it is made from."""
    content = hashlib.sha256(" ".join([find_compiler(), *map(str, flags)]).encode())
    for path in sorted(contents, key=lambda path: path.name):
        content.update(path.name.encode() + path.read_bytes())
    cache = Path(os.environ.get("DIEN_FAST_CACHE") or ROOT / ".cache") / "cuda_emulator"
    return cache / content.hexdigest()[:20] / name


def make(target, command):
    """Run a compiler whose output is ``target``, unless it is there; other processes wait for its lock."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_name(f"partial.{target.name}")
            subprocess.run([find_compiler(), *FLAGS, *command, "-o", partial], check=True)
            partial.rename(target)
    return target


def headers_of(sources):
    """What the kernels, the module and the operators may include of ``sources``."""
    return [*sources.glob("*.h"), *sources.glob("cuda/**/*.h")]


def kernels(sources):
    """The objects of the kernels under ``sources``, and of the emulator."""
    headers = [HERE / "emulator.h", *HERE.glob("platform/*.h")]
    own = [*headers, *headers_of(sources), *sources.glob("cuda/**/*.cuh")]
    units = [(path, own) for path in sources.glob("cuda/*/*.cu")] + [(HERE / "emulator.cpp", headers)]

    def compile_unit(unit):
        path, needs = unit
        target = cached(f"{path.stem}.o", FLAGS, [path, *needs])
        return make(target, [f"-I{HERE / 'platform'}", "-x", "c++", "-c", path])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_unit, units))


def build(sources=ROOT / "csrc"):
    """Return the path of the Python module for the kernels under ``sources``, built if it is not there yet."""
    import pybind11

    objects = kernels(sources)
    flags = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    path = HERE / "module.cpp"
    arguments = ROOT / "tests" / "support" / "cuda_arguments.h"
    needs = [path, arguments, HERE / "emulator.h", *headers_of(ROOT / "csrc")]
    binding = make(cached("module.o", [*FLAGS, *flags], needs), [*flags, "-c", path])
    target = cached(NAME + sysconfig.get_config_var("EXT_SUFFIX"), FLAGS, [binding, *objects])
    return make(target, ["-shared", binding, *objects])


def build_operators():
    """Return the path of the library of operators, over the kernels of this checkout."""
    from torch.utils.cpp_extension import include_paths, library_paths

    objects, sources = kernels(ROOT / "csrc"), ROOT / "csrc"
    flags = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-isystem{path}" for path in include_paths()]
    path = HERE / "operators.cpp"
    needs = [path, HERE / "emulator.h", sources / "library.cpp", *headers_of(sources)]
    needs.append(sources / "cuda" / "attention_gru" / "attention_gru_cuda.cpp")
    unit = make(cached("operators.o", [*FLAGS, *flags], needs), [*flags, "-c", path])
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-ltorch"]
    target = cached("libdien_fast_cuda_emulated.so", FLAGS, [unit, *objects])
    return make(target, ["-shared", unit, *objects, *libraries])


def load(path):
    """Import the module at ``path``."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
