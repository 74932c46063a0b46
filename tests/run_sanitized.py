"""Runs the operators' tests on a sanitized build of the package, once an instruction set of this machine.

`make sanitize` builds it and runs this. A wrong access or an undefined operation ends the process with a report.
"""

import os
import subprocess
import sys
from pathlib import Path

CAPABILITIES = ("baseline", "avx2", "avx512")
TESTS = Path(__file__).resolve().parent
FILES = ("test_ops.py", "test_functional.py", "test_ops_hypothesis.py")
# Other processes, threads of their own, compilers: nothing that the kernels see, and slow here.
LEFT_OUT = "instruction_set or opcheck or script or Backend or 257"
PROBE = "import dien_fast; print(dien_fast._ops.LIBRARY, dien_fast.backend().detail)"


def runtime(name: str) -> str:
    """Path of one of the compiler's libraries."""
    compiler = os.environ.get("CXX", "c++")
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()


def main(package: Path) -> int:
    environment = os.environ | {
        # Python is not sanitized, so the runtimes come first by preloading; torch's exceptions need libstdc++.
        "LD_PRELOAD": " ".join(runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps memory until it ends
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    tested = []
    for capability in CAPABILITIES:
        environment["DIEN_FAST_CPU_CAPABILITY"] = capability
        # Started inside the package's folder, Python imports that package and not the installed one.
        options = {"cwd": package, "env": environment}
        probe = subprocess.run([sys.executable, "-c", PROBE], **options, capture_output=True, text=True)
        if "must name an instruction set of this machine" in probe.stderr:
            print(f"{capability}: not on this machine, skipped", flush=True)
            continue
        if not probe.stdout.startswith(str(package)) or not probe.stdout.rstrip().endswith(capability):
            print(f"{capability}: not the sanitized library: {probe.stdout}{probe.stderr}", file=sys.stderr)
            return 1
        print(f"{capability}:", flush=True)
        tests = [str(TESTS / name) for name in FILES]
        pytest = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
        if subprocess.run([*pytest, *tests], **options).returncode != 0:
            return 1
        tested.append(capability)
    return 0 if tested else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
