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
# For what only calls the kernels: it compiles in two thirds of the time, and runs for milliseconds.
GLUE = ["-O0"]


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


def compiled(units):
    """The objects of units (path, flags, what it needs besides), compiled side by side."""

    def compile_unit(unit):
        path, flags, needs = unit
        target = cached(f"{path.stem}.o", [*FLAGS, *flags], [path, *needs])
        return make(target, [*flags, "-c", path])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_unit, units))


def kernels(sources):
    """The units of the kernels under ``sources``, and of the emulator."""
    headers = [HERE / "emulator.h", *HERE.glob("platform/*.h")]
    shared = [*headers, *headers_of(sources), *sources.glob("cuda/common/*.cuh")]
    flags = [f"-I{HERE / 'platform'}", "-x", "c++"]
    paths = sorted(sources.glob("cuda/*/*.cu"))
    units = [(path, flags, [*shared, *path.parent.glob("*.cuh")]) for path in paths]
    return [*units, (HERE / "emulator.cpp", flags, headers)]


def operators(sources):
    """The unit of the operators under ``sources``."""
    from torch.utils.cpp_extension import include_paths

    flags = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", *GLUE]
    flags += [f"-isystem{path}" for path in include_paths()]
    needs = [HERE / "operators.h", HERE / "emulator.h", ROOT / "tests" / "support" / "cuda_operators.h"]
    needs += headers_of(sources)
    needs += [sources / "library.cpp", *sources.glob("cuda/*/*.cpp")]
    return HERE / "operators.cpp", flags, needs


def build(sources=ROOT / "csrc"):
    """Return the path of the Python module for the kernels under ``sources``, built if it is not there yet."""
    import pybind11

    flags = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}", *GLUE]
    needs = [ROOT / "tests" / "support" / "cuda_arguments.h", HERE / "emulator.h", *headers_of(ROOT / "csrc")]
    objects = compiled([*kernels(sources), (HERE / "module.cpp", flags, needs)])
    target = cached(NAME + sysconfig.get_config_var("EXT_SUFFIX"), FLAGS, objects)
    return make(target, ["-shared", *objects])


def build_operators(sources=ROOT / "csrc"):
    """Return the path of the library of operators of this checkout, over the kernels under ``sources``."""
    from torch.utils.cpp_extension import library_paths

    objects = compiled([operators(ROOT / "csrc"), *kernels(sources)])
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-ltorch"]
    target = cached("libdien_fast_cuda_emulated.so", FLAGS, objects)
    return make(target, ["-shared", *objects, *libraries])


def load(path):
    """Import the module at ``path``."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
