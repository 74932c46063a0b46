"""Breaks the CPU kernels in many places, one at a time, and sees that the operators' tests notice.

Run as ``python tests/ops/mutants.py [--only PATTERN] [--rest] [--jobs 2]``; writes ``mutants.txt`` beside this
file, with what noticed each mutant, and exits with an error if one survived. Mutants are generated: RULES exchange
operators everywhere in the sources, and take out what ends a turn of a loop. So that a mutant takes seconds, the
kernels are compiled for one instruction set, with little optimisation. Where no test notices a mutant, the
sanitizers look at it: it may read what nobody uses.
"""

import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "support"))

from mutation import mutants_of, run_all  # noqa: E402
from run_sanitized import LEFT_OUT, settings_of_addresses  # noqa: E402

# The files, and the tests that look first, by the beginnings of their names; the others of the folder follow.
GRU = ("attention_gru_operator", "cells", "functional", "operator_hypothesis")
SCORES = ("scores", "shared_keys", "dropout")
ROWS = ("rows", "add_rows", "table_rows")
FILES = {
    "cells.h": GRU,
    "activations.h": (*SCORES, "attention_gru_operator"),
    "attention_scores_layers.h": SCORES,
    "attention_scores_mlp.h": SCORES,
    "auxiliary_loss_mlp.h": ("auxiliary_loss",),
    "checks.h": ("wrong_arguments", *GRU),
    "cpu/arguments.h": ("wrong_arguments", *GRU),
    "cpu/attention_gru_cpu.cpp": GRU,
    "cpu/attention_scores_cpu.cpp": SCORES,
    "cpu/attention_scores_kernel.cpp": SCORES,
    "cpu/attention_scores_run.h": SCORES,
    "cpu/auxiliary_loss_cpu.cpp": ("auxiliary_loss",),
    "cpu/auxiliary_loss_kernel.cpp": ("auxiliary_loss",),
    "cpu/kernel/attention_gru_backward.h": GRU,
    "cpu/kernel/attention_gru_forward.h": GRU,
    "cpu/kernel/attention_scores_activations.h": SCORES,
    "cpu/kernel/products.h": (*GRU, *SCORES),
    "cpu/kernel/rows.h": (*SCORES, "auxiliary_loss"),
    "cpu/kernel/vectors.h": (*GRU, *SCORES),
    "cpu/ragged.h": (*ROWS, *SCORES),
    "cpu/rows_cpu.cpp": ROWS,
    "cpu/schedule.cpp": GRU,
    "cpu/table_rows_cpu.cpp": ROWS,
}
OTHERS = ("dropout", "every_operator_hypothesis", "operator_hypothesis", "functional", "wrong_arguments")
# What a mutant changes, and into what; of each rule and file, at most EACH places.
RULES = (
    ("bound", r" < (?=[^<>]*[;?)&|])", " <= "),
    ("bound", r" <= ", " < "),
    ("bound", r" > (?=[^<>]*[;?)&|])", " >= "),
    ("bound", r" >= ", " > "),
    ("one", r" \+ 1\b", ""),
    ("one", r" - 1\b", ""),
    ("sum", r" \+= ", " = "),
    ("sum", r" -= ", " += "),
    ("sign", r"(?<=[\w)\]]) - (?!1\b)", " + "),
    ("sign", r"(?<=[\w)\]]) \+ (?!1\b)", " - "),
    ("factor", r"(?<=[\w)\]]) \* (?=[\w(])(?!1\b)", " + "),
    ("equal", r" == ", " != "),
    ("equal", r" != ", " == "),
    ("logic", r" && ", " || "),
    ("logic", r" \|\| ", " && "),
    ("logic", r"(?<=[( ])!(?=\w)", ""),
    ("skip", r"\bcontinue;", ";"),
    ("skip", r"\breturn;", ";"),
)
EACH = 1
SECONDS = {False: 120, True: 1200}  # that tests may compute, without and with sanitizers
# Mutants that change no result: the file, the rule, how the line begins, and why.
WORK = "divides the work in another way"
SAME = (
    ("activations.h", "bound", "if constexpr (A == Activation::kRelu) return", "zero is zero"),
    ("activations.h", "one", "uint64_t z = seed", "draws other numbers, as random"),
    ("cpu/arguments.h", "bound", "return value.numel() > 0", "nothing is read there"),
    ("cpu/attention_gru_cpu.cpp", "bound", "if (rows.numel() > 0) std::memset", "sets no bytes"),
    ("cpu/attention_gru_cpu.cpp", "skip", "if (length == 0) return;", "copies no bytes"),
    ("cpu/attention_scores_cpu.cpp", "bound", "for (int64_t l = 0; l < end_layer; ++l) gr", "takes more memory"),
    ("cpu/attention_scores_cpu.cpp", "sign", "if (end > begin && rows + end", WORK),
    ("cpu/attention_scores_kernel.cpp", "skip", "if (length == 0) continue;", "there are no rows to add to"),
    ("cpu/attention_scores_run.h", "one", "key_start_.assign(", "nobody reads the last"),
    ("cpu/auxiliary_loss_cpu.cpp", "bound", "p.scale = steps > 0", "there are no rows to scale"),
    ("cpu/auxiliary_loss_kernel.cpp", "bound", "for (; i + 2 * kLanes<T> <= size;", "leaves vectors to the tail"),
    ("cpu/attention_scores_kernel.cpp", "bound", "count = end - row < kTileRows", "equal ones"),
    ("cpu/attention_scores_kernel.cpp", "bound", "for (; t + kLanes<T> <= length;", "leaves a vector to the tail"),
    ("cpu/attention_scores_kernel.cpp", "bound", "if (padded<T>(p.layers[l].width) > w", "equal ones"),
    ("cpu/auxiliary_loss_kernel.cpp", "sign", "store(v + i, (value > T(0) ? T(1) - Vec<T>{}", "ones"),
    ("cpu/kernel/attention_gru_backward.h", "bound", "if (input - column >=", "leaves a vector to the tail"),
    ("cpu/kernel/attention_gru_forward.h", "bound", "for (int64_t column = 0; column < stri", "none are left"),
    ("cpu/kernel/attention_gru_forward.h", "bound", "for (; column + kWide * kL", "leaves them to the next"),
    ("cpu/kernel/attention_gru_forward.h", "bound", "if constexpr (kWide > 1)", "the second loop does the same"),
    ("cpu/kernel/attention_gru_forward.h", "one", "const int64_t groups = (rows", WORK),
    ("cpu/kernel/attention_scores_activations.h", "sign", "return channel_bits(channel", "equal ones"),
    ("cpu/kernel/attention_scores_activations.h", "skip", "if (!p.dropout) return;", "nobody reads the keys"),
    ("cpu/kernel/products.h", "bound", "for (; lane + 4 <= lanes;", "leaves four to the tail"),
    ("cpu/kernel/products.h", "bound", "constexpr int kPanelRows", "the same number"),
    ("cpu/kernel/rows.h", "bound", "if (write == Write::kVectors || out", "writes a vector number by number"),
    ("cpu/kernel/vectors.h", "bound", "for (; i + kLanes<T> <= size;", "leaves a vector to the tail"),
    ("cpu/kernel/vectors.h", "bound", "const auto large = size > 1.8f;", "both ways are right there"),
    ("cpu/kernel/vectors.h", "sign", "const Vec<float> over = large ? -2.0f", "equal ones"),
    ("cpu/kernel/vectors.h", "logic", "#if defined(DIEN_FAST_HALF_VECTORS) ||", "other sets do not compile"),
    ("cpu/rows_cpu.cpp", "bound", "if (bytes > 0) std::memcpy", "copies no bytes"),
    ("cpu/ragged.h", "bound", "for (int64_t b = 0; b < size; ++b)", "no history begins there"),
    ("cpu/ragged.h", "bound", "(offsets[b] + kRowsOfAHistory", WORK),
    ("cpu/ragged.h", "factor", "(offsets[b] + kRowsOfAHistory", WORK),
    ("cpu/schedule.cpp", "factor", "const int64_t tile_rows", WORK),
    ("cpu/schedule.cpp", "sign", "const int64_t tile_rows", WORK),
    ("cpu/schedule.cpp", "sign", "correct = sizes[t] <= s.rows", "the sum of all is compared afterwards"),
    ("cpu/schedule.cpp", "skip", "return;", "sorts a second time"),
    ("cpu/schedule.cpp", "sum", "*least += cost;", WORK),
)


def is_same(title):
    """Whether a mutant changes no result; what a static_assert says, the compiler alone sees."""
    known = any(title.startswith(f"{name}:") and f" {rule}: {begin}" in title for name, rule, begin, _ in SAME)
    return known or "static_assert(" in title


def mutants():
    """Yield (file, title, mutated source)."""
    for name in FILES:
        source = (ROOT / "csrc" / name).read_text()
        for title, mutated in mutants_of(name, source, RULES, EACH, spread=True):
            if not is_same(title):
                yield name, title, mutated


def edit(path, old, new):
    """Replace a text that is there once."""
    text = path.read_text()
    if text.count(old) != 1:
        raise RuntimeError(f"{path} must have once: {old}")
    path.write_text(text.replace(old, new))


def copy_package(to):
    """Copy what builds the package to a directory, for one instruction set."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "dien_fast"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "dien_fast_command.py"):
        shutil.copy(ROOT / name, to / name)
    edit(to / "setup.py", "\n# What torch's own", '\nCAPABILITIES = {"avx2": "-mavx2 -mfma"}\n# What torch\'s own')
    edit(to / "setup.py", " -O3 -fPIC ", " -O1 -fPIC ")
    edit(to / "setup.py", '"-O3",', '"-O1",')
    choice = "#define DIEN_FAST_CHOOSE(capability, name) "
    edit(
        to / "csrc" / "cpu" / "runtime.h",
        choice + "((void)(capability), ::dien_fast::baseline::",
        choice + "((void)(capability), ::dien_fast::avx2::",
    )
    edit(to / "csrc" / "cpu" / "runtime.h", "#if defined(__x86_64__)\n#define", "#if 0\n#define")


def build(package, sanitized=False):
    """Compile what has changed; return the compiler's output if it fails."""
    to = ["--build-lib", library_of(sanitized), "--build-temp", library_of(sanitized) + "/temp"]
    environment = os.environ | {"DIEN_FAST_CUDA": "0", "DIEN_FAST_SANITIZE": str(int(sanitized))}
    command = [sys.executable, "setup.py", "-q", "build", *to]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else None


def library_of(sanitized):
    """Return the folder that a package is built into."""
    return "sanitized" if sanitized else "lib"


def failing(package, names, sanitized=False):
    """Return the first test that fails, or None."""
    files = [str(HERE / f"test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "--tb=line", "-rf", *files]
    # The compiler is given other sources than those of the library; torch.compile has none of its own here.
    command += ["-k", "not (opcheck or script or Backend)"]
    environment = os.environ | {"DIEN_FAST_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    if sanitized:
        environment |= settings_of_addresses()
        # Where pytest captures what is written, the report ends with the process.
        command[-1:] = [f"not ({LEFT_OUT})", "-s"]
    # Of the processor's time, as the machine may be busy.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, 2 * (SECONDS[sanitized],))
    # Started inside the package's folder, Python imports that package and not the installed one.
    options = {"cwd": package / library_of(sanitized), "env": environment, "preexec_fn": limit, "check": False}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode == 0:
        return None
    if re.search(r"ERROR: AddressSanitizer|runtime error:", result.stdout + result.stderr):
        return "the sanitizers"
    failed = re.search(r"(?:FAILED|ERROR) \S*::(.*)", result.stdout)
    if failed:
        return failed[1]
    ends = result.returncode not in (-signal.SIGXCPU, -signal.SIGKILL)
    return "the tests crash" if ends else "the tests do not end"


def sanitized(package, name, whole, mutated):
    """Return what the sanitizers notice, or None."""
    source = package / "csrc" / name
    if not (package / library_of(True)).exists():
        source.write_text(whole)
        failed = build(package, sanitized=True) or failing(package, FILES[name], sanitized=True)
        if failed:
            raise RuntimeError(f"without a mutant, sanitized: {failed}")
        source.write_text(mutated)
    failed = build(package, sanitized=True)
    if failed:
        raise RuntimeError(failed)
    return failing(package, FILES[name], sanitized=True)


def run(name, mutated, directory):
    """Return what noticed the mutant, or None."""
    package = directory / "package"
    if not package.exists():
        copy_package(package)
        failed = build(package) or failing(package, [*FILES[name], *OTHERS])
        if failed:
            raise RuntimeError(f"without a mutant: {failed}")
    source = package / "csrc" / name
    whole = source.read_text()
    source.write_text(mutated)
    try:
        failed = build(package)
        if failed:
            return "the compiler"
        others = [other for other in OTHERS if other not in FILES[name]]
        return (
            failing(package, FILES[name]) or failing(package, others) or sanitized(package, name, whole, mutated)
        )
    finally:
        source.write_text(whole)


if __name__ == "__main__":
    run_all(__doc__, list(mutants()), run, HERE / "mutants.txt")
