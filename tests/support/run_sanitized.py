"""Builds the package with sanitizers and runs the operators' tests on it.

``python tests/support/run_sanitized.py [avx2 threads ...]``: an instruction set, under which a wrong access or an
undefined operation ends the process with a report, or threads, where an access of two that nothing puts in order
does so in another build; without a name, everything, as in `make sanitize`. `make test-all` runs one at a time.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CAPABILITIES = ("baseline", "avx2", "avx512vl", "avx512")
PARTS = (*CAPABILITIES, "threads")
# Of the random calls of an operator, which take minutes: what the sets share is tested with the widest.
MOST_CASES = {"baseline": 1000, "avx2": 1000, "avx512vl": 1000, "avx512": 5000}
TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FILES = (
    "ops/test_attention_gru_operator.py",
    "ops/test_operator_hypothesis.py",
    "ops/test_every_operator_hypothesis.py",
    "ops/test_add_rows.py",
    "ops/test_auxiliary_loss.py",
    "ops/test_denormals.py",
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
    "ops/test_denormals.py",
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
    settings: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"DIEN_FAST_SANITIZE": sanitizers}}
    package.mkdir(parents=True, exist_ok=True)
    with (package / "lock").open("w") as lock:
        # Several instruction sets may be tested at a time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True, **settings)
    return package


def passes(
    package: Path, environment: dict[str, str], files: tuple[str, ...], left_out: str, before: tuple[str, ...] = ()
) -> bool:
    """Whether tests pass on a package."""
    pytest = [*before, sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", ""]
    pytest += ["-k", f"not ({left_out})", *(str(TESTS / name) for name in files)]
    # Started inside the package's folder, Python imports that package and not the installed one.
    return subprocess.run(pytest, cwd=package, env=environment, check=False).returncode == 0


def settings_of_addresses() -> dict[str, str]:
    """Return the environment in which AddressSanitizer and UndefinedBehaviorSanitizer see Python's extensions."""
    return {
        # Python is not sanitized, so the runtimes come first by preloading; torch's exceptions need libstdc++.
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")),
        # Python keeps memory until it ends. Too large a request is an error that torch raises.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }


def addresses(capability: str) -> bool | None:
    """Whether AddressSanitizer and UndefinedBehaviorSanitizer report nothing; None: the machine lacks the set."""
    package = build("1")
    own = {"DIEN_FAST_CPU_CAPABILITY": capability, "DIEN_FAST_MOST_CASES": str(MOST_CASES[capability])}
    environment = os.environ | settings_of_addresses() | own
    command = [sys.executable, "-c", PROBE]
    probe = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    if "must name an instruction set of this machine" in probe.stderr:
        return None
    if probe.returncode or not probe.stdout.startswith(str(package)) or probe.stdout.split()[-1] != capability:
        print(f"not the sanitized library: {probe.stdout}{probe.stderr}", file=sys.stderr)
        return False
    return passes(package, environment, FILES, LEFT_OUT)


def threads() -> bool:
    """Whether ThreadSanitizer reports nothing."""
    package = build("thread")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libtsan.so", "libstdc++.so")),
        # It would take what torch does between its own threads for races: it does not see OpenMP's barriers.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        "OMP_NUM_THREADS": "4",
    }
    # The sanitizer wants its shadow memory at fixed addresses, and does not survive a fork.
    return passes(package, environment, THREADED, f"{LEFT_OUT} or fork", ("setarch", "--addr-no-randomize"))


def main(parts: Sequence[str]) -> int:
    tested = []
    for part in parts:
        print(f"{part}:", flush=True)
        found = threads() if part == "threads" else addresses(part)
        if found is None:
            print("this machine lacks it")
        elif found:
            tested.append(part)
        else:
            return 1
    print(f"sanitized: {', '.join(tested)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or PARTS))
