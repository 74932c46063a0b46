"""Breaks the CUDA kernels in many places, one at a time, and sees that the emulated tests notice.

Run as ``python tests/cuda/emulator/mutants.py``; writes ``mutants.txt`` beside this file, with what noticed each
mutant, and exits with an error if one survived. Mutants are generated: every barrier and every wait for an
asynchronous copy is taken out, and the conditions, bounds and offsets that RULES match are moved by one.
"""

import argparse
import functools
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FILES = (
    "attention_gru/schedule.cu",
    "common/gemm.cuh",
    "attention_gru/scan.cuh",
    "attention_gru/forward_scan.cuh",
    "attention_gru/backward_scan.cuh",
    "attention_gru/weights.cuh",
    "attention_gru/products.cuh",
    "attention_scores/channels.cuh",
    "attention_scores/softmax.cuh",
    "attention_scores/terms.cuh",
    "auxiliary_loss/loss.cuh",
    "auxiliary_loss/pairs.cuh",
    "common/layers.cuh",
    "common/reduce.cuh",
    "common/row_sums.cuh",
    "common/sums.cuh",
    "rows/rows.cu",
)
# The tests that look for a mutant of a file, by the beginnings of its name; else those of the recurrence.
LAYER = ("attention_scores/", "auxiliary_loss/", "rows/", "common/layers", "common/reduce", "common/row_sums")
LAYER_TESTS = ("test_cuda_rows.py", "test_cuda_loss.py", "test_cuda_scores.py")
# What a mutant changes, and into what; of each rule and file, at most EACH places. Left out are bounds that only
# keep a read inside whose value nobody uses, or which copies poison onto poison: the emulator sees neither.
RULES = (
    ("barrier", r"__syncthreads\(\);", "{}"),
    ("wait", r"copy_async_wait<[^0][^>]*>\(\)", "copy_async_wait<8>()"),
    ("wait", r"copy_async_wait<0>\(\);(?!\n\})", "{}"),
    ("commit", r"copy_async_commit\(\);", "{}"),
    ("bound", r"(?<=\w) < (?=(count(?=\) to)|rows;|rows - hidden)\b)", " <= "),
    ("bound", r">= (?=(layout\.batch|to\.batch|chunk\.slot\[h\.batch\])\))", "> "),
    ("bound", r"\(row >= rows\)", "(row > rows)"),
    ("bound", r"at < end(?= \? p\.a)", "at <= end"),
    ("bound", r"c < columns\)", "c <= columns)"),
    ("bound", r"k < p\.depth \* kRows", "k <= p.depth * kRows"),
    ("bound", r"if \(column < hidden\)(?= \{\n\s+if constexpr \(!kResident\) c_bias)", "if (column <= hidden)"),
    ("bound", r"(?<=if \()column >= hidden(?=\) continue)", "column > hidden"),
    ("bound", r"column >= p\.depth\) continue", "column > p.depth) continue"),
    ("bound", r"s >= own\[i\]\.steps(?=\) continue;\n\s+const Rule)", "s > own[i].steps"),
    ("index", r"steps - 1 - s\b", "steps - s"),
    ("index", r"t - 1\)", "t)"),
    ("index", r"position \+ 1\]", "position]"),
    ("index", r"\bs \+ 1\b", "s"),
    ("index", r"owner\.group \* kOwn", "owner.lane % 4 * kOwn"),
    ("stride", r"k \+= 4, ", "k += 8, "),
    ("stride", r"\+= 8 \* kRows", "+= 4 * kRows"),
    ("shuffle", r"owner\.lane, (16|8|1)\)", r"owner.lane, (\1 == 16 ? 8 : 16))"),
    ("tail", r"\+ kGemmDepth < end", "+ kGemmDepth + 1 < end"),
    ("tail", r"left < panels_\.stage \? left : panels_\.stage", "panels_.stage"),
    ("tail", r"round_up\(hidden, kWarpColumns\)", "int(hidden)"),
    ("tail", r"\(count \+ kScanThreads - 1\) / kScanThreads", "count / kScanThreads"),
    ("place", r"at < position", "at <= position"),
    ("place", r"first_place\(k\) <= place", "first_place(k) <= place + 1"),
    ("row", r"-1 - (?=h\.history|at)", "- "),
    ("sum", r"first \? value : to \+ value", "value"),
    ("sum", r"p\.first \? (\w+) : [^;]*;", r"\1;"),
    ("sum", r"p\.first \? T\(0\) : p\.\w+\[at\]", "T(0)"),
    ("bound", r"(channel|column) < (?=width|p\.depth)", r"\1 <= "),
    ("bound", r"row \+ 1 < rows\.end", "row < rows.end"),
    ("bound", r"row < (?=rows\.end|end)", "row + 1 < "),
    ("bound", r"if \(i >= (size|p\.size|p\.width \* p\.depth)\) return;", "{}"),
    ("bound", r"at < rows\.size\(\) \* pieces", "at <= rows.size() * pieces"),
    ("tail", r"end - row < kRowsAtOnce \? int\(end - row\) : kRowsAtOnce", "kRowsAtOnce"),
    ("tail", r"begin \+ kGemmRows < rows\.end \? begin \+ kGemmRows : rows\.end", "begin + kGemmRows"),
    ("place", r"before\[middle\] <= tile", "before[middle] < tile"),
    ("row", r"\(row \+ 1\) \* depth", "row * depth"),
    ("row", r"tile\.tiles\.rows\.size \+ i\)", "i)"),
    ("row", r"\(pair < rows \? pair : pair - rows\)", "(pair % 2)"),
    ("weight", r"max_length - length : 0", "max_length : 0"),
)
EACH = 3


def mutants():
    """Yield (file, rule, line, mutated source)."""
    for name in FILES:
        source = (ROOT / "csrc" / "cuda" / name).read_text()
        for rule, pattern, replacement in RULES:
            for match in list(re.finditer(pattern, source))[:EACH]:
                begin = source.rfind("\n", 0, match.start()) + 1
                if re.match(r"\s*(//|while)", source[begin:]):  # a loop that never ends shows nothing
                    continue
                mutated = source[: match.start()] + match.expand(replacement) + source[match.end() :]
                yield (
                    name,
                    rule,
                    source.count("\n", 0, match.start()) + 1,
                    source[begin:].split("\n")[0].strip(),
                    mutated,
                )


def run(name, mutated, directory):
    """Return what noticed the mutant: the first failing test and its reason, or None."""
    sources = directory / "csrc"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", sources)
    (sources / "cuda" / name).write_text(mutated)
    # One type, for the sake of time: the others differ in loads and stores alone.
    dispatch = sources / "cuda" / "attention_gru" / "dispatch.cu"
    dispatch.write_text(re.sub(r"(double|Half|BFloat16)\{\}", "float{}", dispatch.read_text()))
    for kernels in sources.glob("cuda/*/kernels_*.cu"):
        if kernels.stem != "kernels_float":
            kernels.unlink()
    options = ["-xq", "-p", "no:cacheprovider", "--tb=line", "-rf"]
    if name.startswith(LAYER):
        options += [str(ROOT / "tests" / "cuda" / test) for test in LAYER_TESTS]
    else:
        options += [
            str(ROOT / "tests" / "cuda" / "test_cuda_emulated.py"),
            "-k",
            "not (many_steps or empty or double or float16 or float64)",
        ]
    code = (
        "import sys, pytest, emulator.build as b; from pathlib import Path\n"
        "b.FLAGS[b.FLAGS.index('-O2')] = '-O1'; whole = b.build\n"
        f"b.build = lambda: whole(Path({str(sources)!r}))\n"
        f"operators = b.build_operators; b.build_operators = lambda: operators(Path({str(sources)!r}))\n"
        f"sys.exit(pytest.main({options!r}))\n"
    )
    # Of the processor's time, as the machine may be busy.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (150, 150))
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests" / "cuda",
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    if result.returncode == 0:
        return None
    if "CalledProcessError" in result.stdout + result.stderr:
        raise RuntimeError(f"the mutant does not compile:\n{result.stdout}{result.stderr}")
    failed = re.search(r"FAILED \S*::(.*)", result.stdout)
    if failed:
        return failed[1]
    return "the tests do not end" if result.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else "the tests crash"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="run those that match this pattern; the listing keeps the others"
    )
    only = parser.parse_args().only
    listing = HERE / "mutants.txt"
    known = re.findall(r"^(\S.*\n    .*)$", listing.read_text() if listing.exists() else "", re.MULTILINE)
    known = dict(entry.split("\n    ") for entry in known)
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, rule, line, text, mutated in mutants():
            title = f"{name}:{line} {rule}: {text}"
            if re.search(only, title):
                found[title] = run(name, mutated, Path(directory)) or "SURVIVED"
                print(f"{title}\n    {found[title]}", flush=True)
            elif title in known:
                found[title] = known[title]
    survivors = [title for title, noticed in found.items() if noticed == "SURVIVED"]
    lines = [f"{title}\n    {noticed}" for title, noticed in found.items()]
    head = f"{len(found)} mutants, {len(found) - len(survivors)} noticed; each with the first test that failed."
    listing.write_text("\n".join([head, "", *lines]) + "\n")
    sys.exit(len(survivors) > 0)


if __name__ == "__main__":
    main()
