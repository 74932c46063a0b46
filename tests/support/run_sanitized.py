"""Builds the package with sanitizers and runs the operators' tests on it.

`make sanitize` and `make test-all` run this. A wrong access or an undefined operation ends the process with a
report, once an instruction set of this machine. So does, in another build, an access of two threads that nothing
puts in order.
"""

import os
import subprocess
import sys
from pathlib import Path

CAPABILITIES = ("baseline", "avx2", "avx512vl", "avx512")
TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FILES = (
    "ops/test_attention_gru_operator.py",
    "ops/test_operator_hypothesis.py",
    "ops/test_every_operator_hypothesis.py",
    "ops/test_add_rows.py",
    "ops/test_auxiliary_loss.py",
    "ops/test_dropout.py",
    "ops/test_rows.py",
    "ops/test_scores.py",
    "ops/test_shared_keys.py",
    "ops/test_table_rows.py",
    "ops/test_wrong_arguments.py",
    "ops/test_functional.py",
)
# Those that use several threads.
THREADED = (
    "ops/test_attention_gru_operator.py",
    "ops/test_auxiliary_loss.py",
    "ops/test_rows.py",
    "ops/test_scores.py",
    "ops/test_table_rows.py",
    "ops/test_threads.py",
)
# The other files of tests/ops give the kernels nothing that is new to them, or start processes of their own.
OTHERS = (
    "ops/test_cells.py",
    "ops/test_fallback.py",
    "ops/test_functional_errors.py",
    "ops/test_instruction_sets.py",
    "ops/test_kernels.py",
    "ops/test_mutants.py",
    "ops/test_opcheck.py",
    "ops/test_operator_compile.py",
    "ops/test_sanitized.py",
    "ops/test_threads.py",
)
# Threads of their own and compilers: nothing that the kernels see, and slow here.
LEFT_OUT = "opcheck or script or Backend or 257"
PROBE = "import dien_fast, torch; print(dien_fast.ops.backend.LIBRARY, torch.ops.dien_fast.cpu_capability())"


def runtime(name: str) -> str:
    """Path of one of the compiler's libraries."""
    compiler = os.environ.get("CXX", "c++")
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()


def build(sanitizers: str) -> Path:
    """Build what has changed since the last time, for a DIEN_FAST_SANITIZE; return the folder of the package."""
    package = ROOT / "build" / ("sanitize" if sanitizers == "1" else f"sanitize-{sanitizers}")
    command = ["setup.py", "-q", "build", "--build-lib", str(package), "--build-temp", str(package / "temp")]
    environment = os.environ | {"DIEN_FAST_SANITIZE": sanitizers}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return package


def passes(
    package: Path, environment: dict[str, str], files: tuple[str, ...], left_out: str, before: tuple[str, ...] = ()
) -> bool:
    """Whether tests pass on a package."""
    pytest = [*before, sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", ""]
    pytest += ["-k", f"not ({left_out})", *(str(TESTS / name) for name in files)]
    # Started inside the package's folder, Python imports that package and not the installed one.
    return subprocess.run(pytest, cwd=package, env=environment, check=False).returncode == 0


def addresses() -> list[str] | None:
    """Return the instruction sets for which AddressSanitizer and UndefinedBehaviorSanitizer report nothing."""
    package = build("1")
    environment = os.environ | {
        # Python is not sanitized, so the runtimes come first by preloading; torch's exceptions need libstdc++.
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")),
        # Python keeps memory until it ends. Too large a request is an error that torch raises.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("DIEN_FAST_CPU_CAPABILITY", None)
    command = [sys.executable, "-c", PROBE]
    probe = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    best = probe.stdout.split()[-1] if probe.returncode == 0 else None
    if not probe.stdout.startswith(str(package)) or best not in CAPABILITIES:
        print(f"not the sanitized library: {probe.stdout}{probe.stderr}", file=sys.stderr)
        return None
    # Each is part of the next one, so the machine has all of them up to its best.
    tested = CAPABILITIES[: CAPABILITIES.index(best) + 1]
    for capability in tested:
        print(f"{capability}:", flush=True)
        if not passes(package, environment | {"DIEN_FAST_CPU_CAPABILITY": capability}, FILES, LEFT_OUT):
            return None
    return list(tested)


def threads() -> bool:
    """Whether ThreadSanitizer reports nothing."""
    package = build("thread")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libtsan.so", "libstdc++.so")),
        # It would take what torch does between its own threads for races: it does not see OpenMP's barriers.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        "OMP_NUM_THREADS": "4",
    }
    print("threads:", flush=True)
    # The sanitizer wants its shadow memory at fixed addresses, and does not survive a fork.
    return passes(package, environment, THREADED, f"{LEFT_OUT} or fork", ("setarch", "--addr-no-randomize"))


def main() -> int:
    tested = addresses()
    if tested is None or not threads():
        return 1
    print(f"sanitized: {', '.join(tested)}, threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
