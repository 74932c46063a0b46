"""Breaks the CUDA kernels in many places, one at a time, and sees that the emulated tests notice.

Run as ``python tests/cuda/emulator/mutants.py``; writes ``mutants.txt`` beside this file, with what noticed each
mutant, and exits with an error if one survived. Mutants are generated: every barrier and every wait for an
asynchronous copy is taken out, and the conditions, bounds and offsets that RULES match are moved by one.
"""

import functools
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

from mutation import mutants_of, run_all  # noqa: E402

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
    "common/splits.cuh",
    "common/sums.cuh",
    "rows/rows.cu",
)
# The tests that look for a mutant of a file, by the beginnings of its name; else those of the recurrence.
LAYER = ("attention_scores/", "auxiliary_loss/", "rows/")
LAYER += tuple(f"common/{name}.cuh" for name in ("layers", "reduce", "row_sums", "splits"))
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
    ("bound", r"k < p\.depth \* kRows", "k <= p.depth * kRows"),
    ("bound", r"if \(column < hidden\)(?= \{\n\s+if constexpr \(!kResident\) c_bias)", "if (column <= hidden)"),
    ("bound", r"(?<=if \()column >= hidden(?=\) continue)", "column > hidden"),
    ("bound", r"column >= p\.depth\) continue", "column > p.depth) continue"),
    ("bound", r"s >= own\[i\]\.steps(?=\) continue;\n\s+(const Rule|W sum))", "s > own[i].steps"),
    ("bound", r"s < own\[i\]\.steps\) own_dh", "s <= own[i].steps) own_dh"),
    ("bound", r"if \(at < 0\) continue", "if (at < -1) continue"),
    ("bound", r"begin \+ at > 0", "begin + at >= 0"),
    ("bound", r">= f\.histories\.batch", "> f.histories.batch"),
    ("bound", r"\+ i < b\.histories\.batch", "+ i <= b.histories.batch"),
    ("index", r"steps - 1 - s\b", "steps - s"),
    ("index", r"t - 1\)", "t)"),
    ("index", r"at - 2\)", "at - 1)"),
    ("index", r"position \+ 1\]", "position]"),
    ("index", r"\bs \+ 1\b(?! < own)", "s"),
    ("index", r"s \+ f\.ahead", "s + 1"),
    ("index", r"owner\.group \* kOwn", "owner.lane % 4 * kOwn"),
    ("index", r"\(wraps\) go_back", "(block == 0) go_back"),
    ("stride", r"k \+= 4, ", "k += 8, "),
    ("stride", r"\+= 8 \* kRows", "+= 4 * kRows"),
    ("stride", r"\+= (?=(kGroups|kWarp|int64_t\(gridDim\.x\) \* kSumWarps)\))", "+= 2 * "),
    ("shuffle", r"owner\.lane, (16|8|1)\)", r"owner.lane, (\1 == 16 ? 8 : 16))"),
    ("shuffle", r"mask = 1; mask < kWarpColumns", "mask = 2; mask < kWarpColumns"),
    ("tail", r"left < panels_\.stage \? left : panels_\.stage", "panels_.stage"),
    ("tail", r"round_up\(hidden, kWarpColumns\)", "int(hidden)"),
    ("tail", r"\(count \+ kScanThreads - 1\) / kScanThreads", "count / kScanThreads"),
    ("tail", r"warp < warps", "warp + 1 < warps"),
    ("place", r"at < position", "at <= position"),
    ("place", r"first_place\(k\) <= place", "first_place(k) <= place + 1"),
    ("place", r"1 - place", "place"),
    ("place", r"1 - \(s & 1\)", "(s & 1)"),
    ("place", r"chunk\.slot\[middle\] <= slot", "chunk.slot[middle] < slot"),
    ("place", r"length\[i\] > length", "length[i] >= length"),
    ("place", r"== length && i < b", "== length && i <= b"),
    ("place", r"step_start\[t\] > b", "step_start[t] >= b"),
    ("row", r"-1 - (?=h\.history|at)", "- "),
    ("row", r"t > 0(?= \? h)", "t > 1"),
    ("row", r"rows == nullptr \? slot : rows\[slot\]", "slot"),
    ("row", r"if \(at >= 0\) return states", "if (at > 0) return states"),
    ("sum", r"first \? value : to \+ value", "value"),
    ("sum", r"p\.first \? (\w+) : [^;]*;", r"\1;"),
    ("sum", r"p\.first \? T\(0\) : p\.\w+\[at\]", "T(0)"),
    ("sum", r"row_sum \+= sum", "row_sum = sum"),
    ("sum", r"if \(!first\) \{", "if (false && first) {"),
    ("step", r"k_of\(e\) < depth", "k_of(e) <= depth"),
    ("step", r"e \* line_step < lines", "e * line_step + 1 < lines"),
    ("step", r"(row|column) (?=< tile_(rows|columns) && k < depth)", r"\1 + 1 "),
    ("step", r"(?<=&& )k < depth", "k + 1 < depth"),
    ("step", r"kWhole \|\| k < depth \? k : depth - 1", "kWhole || k + 1 < depth ? k : 0"),
    ("step", r"row < tile_rows \? row", "row + 1 < tile_rows ? row"),
    ("step", r"next \+ kGemmDepth <= depth", "next <= depth"),
    ("step", r"\(next < depth\)", "(next + 1 < depth)"),
    ("tile", r"own_row \+ r < tile_rows", "own_row + r <= tile_rows"),
    ("tile", r"thread < tile_rows", "thread <= tile_rows"),
    ("tile", r"i \+= kGemmRows\) total", "i += kGemmThreads) total"),
    ("tile", r"blockIdx\.y > 0\) return", "blockIdx.y > 1) return"),
    ("tile", r"rows - first_row < kGemmRows \?", "rows < 0 ?"),
    ("tile", r"columns_left < kGemmColumns \?", "columns_left < 0 ?"),
    ("tile", r"tile_columns - own_column < kOwnColumns \?", "tile_columns < 0 ?"),
    ("tile", r"count == kOwnColumns(?=[^{]*\{\n\s+All all;)", "count >= kOwnColumns - 1"),
    ("tile", r"c < count\) store", "c <= count) store"),
    ("tile", r"j \+ c < before\.width", "j + c <= before.width"),
    ("split", r"split < (?=(p\.)?(query_)?splits; )", "split <= "),
    ("split", r"group = 1; group", "group = 2; group"),
    ("split", r"group < kGroups", "group + 1 < kGroups"),
    ("split", r"(?<!!)leads\(\) && ", ""),
    ("split", r"!leads\(\) \|\| ", ""),
    ("split", r"leads\(\) && i < (?=size|p\.size)", "leads() && i <= "),
    ("split", r"leads\(\) \|\| i >= size", "leads() || i > size"),
    ("split", r"other < kSumWarps", "other + 1 < kSumWarps"),
    ("bound", r"(channel|column) < (?=width|p\.depth)", r"\1 <= "),
    ("bound", r"row \+ 1 < rows\.end", "row < rows.end"),
    ("bound", r"row < (?=rows\.end|end|p\.rows\.rows)", "row + 1 < "),
    ("bound", r"if \(i >= (size|p\.size|p\.width \* p\.depth)\) return;", "{}"),
    ("bound", r"at < rows\.size\(\) \* pieces", "at <= rows.size() * pieces"),
    (
        "bound",
        r"\b(c|d|i|h|b) (?=< (p\.width|p\.depth|p\.count|count|end|p\.rows\.size); (?!i \+= blockDim))",
        r"\1 + 1 ",
    ),
    ("bound", r"(?<=if \()c >= width(?=\) return)", "c > width"),
    ("bound", r"row >= rows\.size", "row > rows.size"),
    ("bound", r"i < count(?= \? T\(p\.weights)", "i <= count"),
    ("bound", r"i >= count\) continue(?=;\n\s+const T a)", "i > count) continue"),
    ("bound", r"i < size\) to\[i\]", "i <= size) to[i]"),
    ("bound", r"pair < (?=2 \* p\.chunk\.rows)", "pair + 1 < "),
    ("pair", r"(?<!\()pair < (?=p\.chunk\.rows)", "pair <= "),
    ("pair", r"int\(pair\) < rows", "int(pair) <= rows"),
    ("pair", r"k < width_of_row", "k <= width_of_row"),
    ("pair", r"row < (?=int\(chunk\.rows_before_last\))", "row + 1 < "),
    ("pair", r"has\(e\) && chunk\.counts\(pair_of\(e\)\)", "has(e) && pair_of(e) >= 0"),
    ("pair", r"if \(lane > 0\) continue;", "{}"),
    ("pair", r"length > 0 \? length - 1 : 0", "length"),
    ("pair", r"rows - 1 - begin\)", "rows - begin)"),
    ("pair", r"behind = chunk\.rows", "behind = 0"),
    ("pair", r"\(chunk\.begin \+ 1\)", "chunk.begin"),
    ("pair", r"first\(i == 0\)", "first(i >= 0)"),
    ("pair", r"plan\.chunks > 0 \? plan\.splits\[l\] : 0", "plan.splits[l]"),
    ("tail", r"\(rows \+ chunk_rows - 1\)", "rows"),
    ("tail", r"end - row < kRowsAtOnce \? int\(end - row\) : kRowsAtOnce", "kRowsAtOnce"),
    ("tail", r"begin \+ kGemmRows < rows\.end \? begin \+ kGemmRows : rows\.end", "begin + kGemmRows"),
    ("tail", r"\(tiles\.rows_of\(b\)\.size\(\) \+ kGemmRows - 1\)", "tiles.rows_of(b).size()"),
    ("place", r"tile < (?=tiles\.before\[b \+ 1\])", "tile + 1 < "),
    ("place", r"tile >= (?=tiles\.before\[tiles\.rows\.size\])", "tile + 1 >= "),
    ("place", r"tile - tiles\.before\[history\]", "tile - tile"),
    ("row", r" - tile\.first_row\)", ")"),
    ("row", r"tile\.tiles\.rows\.size \+ i\)", "i)"),
    ("row", r"\(ragged\.size \+ begin\)", "begin"),
    ("row", r"\(pair < rows \? pair : pair - rows\)", "(pair % 2)"),
    ("row", r"\(set\.first \+ (i|begin)\) \*", r"\1 *"),
    ("row", r"source\.row\(set\.first \+ ", "source.row("),
    ("row", r"set\.first \+ at\.", "at."),
    ("row", r"used == nullptr \? most : clamped\(\*used, 0, most\)", "most"),
    ("row", r"row < padded_rows \?", "row <= padded_rows ?"),
    ("row", r"other\[e \* at\.line_step \* int\(this->width\)\]", "other[0]"),
    ("weight", r"max_length - length : 0", "max_length : 0"),
)
EACH = 3


def mutants():
    """Yield (file, title, mutated source)."""
    for name in FILES:
        source = (ROOT / "csrc" / "cuda" / name).read_text()
        for title, mutated in mutants_of(name, source, RULES, EACH):
            yield name, title, mutated


def copy_sources(to):
    """Copy the sources to a directory, and return it."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", to)
    # One type, for the sake of time: the others differ in loads and stores alone.
    dispatch = to / "cuda" / "attention_gru" / "dispatch.cu"
    dispatch.write_text(re.sub(r"(double|Half|BFloat16)\{\}", "float{}", dispatch.read_text()))
    for kernels in to.glob("cuda/*/kernels_*.cu"):
        if kernels.stem != "kernels_float":
            kernels.unlink()
    return to


def run(name, mutated, directory):
    """Return what noticed the mutant: the first failing test and its reason, or None."""
    whole, sources = copy_sources(directory / "whole"), copy_sources(directory / "csrc")
    (sources / "cuda" / name).write_text(mutated)
    options = ["-xq", "-p", "no:cacheprovider", "--tb=line", "-rf"]
    if name.startswith(LAYER):
        options += [str(ROOT / "tests" / "cuda" / test) for test in LAYER_TESTS]
    else:
        options += [
            str(ROOT / "tests" / "cuda" / "test_cuda_emulated.py"),
            "-k",
            "not (many_steps or empty or double or float16 or float64)",
        ]
    # Other kernels are left out, or are those of the whole sources, compiled once. These come last: where both
    # have a function, the linker takes the first.
    units = f"of({str(sources)!r}, 'attention_gru', 'emulator')"
    if name.startswith(LAYER):
        units = f"of({str(sources)!r}, 'attention_scores', 'auxiliary_loss', 'rows', 'emulator')"
        units += f" + of({str(whole)!r}, 'attention_gru')"
    code = (
        "import sys, pytest, emulator.build as b; from pathlib import Path\n"
        "b.FLAGS[b.FLAGS.index('-O2')] = '-O1'; kernels = b.kernels\n"
        "of = lambda sources, *names: [u for u in kernels(Path(sources)) if u[0].parent.name in names]\n"
        f"b.kernels = lambda sources: {units}\n"
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


if __name__ == "__main__":
    run_all(__doc__, list(mutants()), run, HERE / "mutants.txt")
