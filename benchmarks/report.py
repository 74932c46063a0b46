"""Writes the README's section on speed, and its picture, from the results of the other scripts.

    python benchmarks/report.py [NAME | --here] [--check]

NAME is that of the results, such as zen3-2-threads for ``results/cpu-zen3-2-threads.json``, beside which there may
be ``model-zen3-2-threads.json``, ``memory-...``, ``peers-...`` and ``trainings-...``; without it, the results that
the README tells of now. ``--here`` means the results of this machine. ``--check`` changes nothing and fails if the
README differs.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import machine

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
FORWARD, BOTH = "AUGRU forward", "AUGRU forward + backward"
OTHERS = ("scripted loop", "torch.compile loop", "nn.GRU packed", "nn.GRU padded")
RATES = [(1024, 50, 32), (1024, 100, 64), (256, 200, 128)]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's.
WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}

Rows = dict[tuple[str, tuple[int, int, int]], dict[str, Any]]  # by part and size


def rows_of(speed: dict[str, Any]) -> Rows:
    return {(row["part"], (row["B"], row["T"], row["H"])): row for row in speed["rows"]}


def sizes_of(rows: Rows, *parts: str) -> list[tuple[int, int, int]]:
    return list(dict.fromkeys(size for part, size in rows if part in parts))


def show_milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def show_ratio(value: float) -> str:
    """Two digits below 1, so that no loss is rounded away."""
    return f"{value:.1f}x" if value >= 1 else f"{min(value, 0.99):.2f}x"


def ratio(row: dict[str, Any] | None, provider: str) -> float | None:
    """Return how many times as long as dien-fast a provider takes; None where it took no part."""
    if row is None or provider not in row["milliseconds"]:
        return None
    return float(row["milliseconds"][provider] / row["milliseconds"]["dien-fast"])


def against_loop(row: dict[str, Any] | None) -> str:
    quotient = ratio(row, "reference loop")
    if row is None or quotient is None:
        return ""
    times = [show_milliseconds(row["milliseconds"][name]) for name in ("reference loop", "dien-fast")]
    return f"**{show_ratio(quotient)}** ({times[0]} → {times[1]})"


def against_other(row: dict[str, Any] | None, provider: str) -> str:
    quotient = ratio(row, provider)
    if row is None or quotient is None:
        return ""
    return f"{show_ratio(quotient)} ({show_milliseconds(row['milliseconds'][provider])})"


def table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in body])


def show_size(size: tuple[int, int, int]) -> str:
    return ", ".join(map(str, size))


def loop_table(rows: Rows) -> str:
    parts = (FORWARD, BOTH, "Interest forward + backward")
    head = ["B, T, H", FORWARD, BOTH, "`Interest` forward + backward"]
    return table(
        head,
        [[show_size(s), *(against_loop(rows.get((part, s))) for part in parts)] for s in sizes_of(rows, *parts)],
    )


def others_table(rows: Rows) -> str:
    seen = {name for (part, _), row in rows.items() if part in (FORWARD, BOTH) for name in row["milliseconds"]}
    names = [name for name in OTHERS if name in seen]
    body = []
    for size in sizes_of(rows, FORWARD, BOTH):
        for part, short in ((FORWARD, "forward"), (BOTH, "forward + backward")):
            if (part, size) in rows:
                cells = [against_other(rows[part, size], name) for name in names]
                body.append([f"{show_size(size)}, {short}", *cells])
    return table(["B, T, H", *names], body)


def onednn_table(rows: Rows) -> str:
    passes = [(what, kind) for kind in ("dense", "ragged") for what in ("forward", "forward + backward")]
    parts = [f"augru_official {what}, {kind}" for what, kind in passes]
    body = []
    for size in sizes_of(rows, *parts):
        found = [ratio(rows.get((part, size)), "oneDNN") for part in parts]
        body.append([show_size(size), *("" if value is None else show_ratio(value) for value in found)])
    return table(["B, T, H", *(f"{kind}: {what}" for what, kind in passes)], body)


def rates_table(rows: Rows, peak: float) -> str:
    columns = [("forward", "dien-fast"), ("forward + backward", "dien-fast")]
    columns += [("forward + backward", "dien-fast, recomputing")]
    body = []
    for size in RATES:
        found = [rows.get((f"augru_official {what}, dense", size)) for what, _ in columns]
        rates = [
            None if row is None else row["GFLOP/s"].get(name)
            for row, (_, name) in zip(found, columns, strict=True)
        ]
        if any(rates):
            body.append([show_size(size), *(f"{r:.0f} ({100 * r / peak:.0f} %)" if r else "" for r in rates)])
    return table(["B, T, H", "forward", "forward + backward", "the same, gates computed again"], body)


def losses(rows: Rows) -> str:
    """Name every provider that is faster somewhere, and where."""
    lost: dict[str, list[str]] = {}
    for (part, size), row in rows.items():
        for name in row["milliseconds"]:
            quotient = ratio(row, name)
            if not name.startswith("dien-fast") and quotient is not None and quotient < 1:
                what = part.removeprefix("augru_official ").removeprefix("AUGRU ")
                lost.setdefault(name, []).append(f"{show_size(size)} {what} ({show_ratio(quotient)})")
    if not lost:
        return "No provider is faster at any of these sizes."
    return "Faster than dien-fast: " + "; ".join(f"{name} at {', '.join(at)}" for name, at in lost.items()) + "."


def memory_text(memory: dict[str, Any]) -> str:
    texts = []
    for provider in dict.fromkeys(row["provider"] for row in memory["rows"]):
        worst = max(row["extra / (N H)"] for row in memory["rows"] if row["provider"] == provider)
        texts.append(f"{provider} at most {worst:.2f}")
    steps = sorted({row["T"] for row in memory["rows"]})
    return (
        "Memory of forward + backward beyond inputs, outputs and their gradients, in units of N x H float32 "
        f"numbers, N = B x T of {memory['rows'][0]['B'] * memory['rows'][0]['T']:,} and more, "
        f"T {steps[0]} to {steps[-1]}: {', '.join(texts)}."
    )


def model_table(model: dict[str, Any]) -> str:
    """Compare whole models, whatever they are measured in, with the reference."""

    def row(what: str, before: float, after: float, unit: str, quotient: float) -> list[str]:
        digits = 0 if max(before, after) >= 1000 else 1 if max(before, after) >= 10 else 2
        return [what, f"{before:,.{digits}f} {unit}", f"{after:,.{digits}f} {unit}", f"**{show_ratio(quotient)}**"]

    step, epoch = model["step"]["milliseconds"], model["epoch"]["seconds"]
    official, serving = model["official"]["records a second"], model["serving"]["p50 milliseconds"]
    old = epoch["article's pipeline"]
    body = [
        row(
            "training step, ML-100K, batch 128",
            step["reference"],
            step["dien-fast"],
            "ms",
            step["reference"] / step["dien-fast"],
        ),
        row(
            f"epoch of {model['epoch']['rows']:,} rows with its data (article's pipeline)",
            old,
            epoch["dien-fast"],
            "s",
            old / epoch["dien-fast"],
        ),
    ]
    for provider, what in (("dien-fast", ""), ("dien-fast, sparse tables", ", sparse gradients of the tables")):
        quotient = official[provider] / official["reference"]
        what = f"official sizes, records a second{what}"
        body.append(row(what, official["reference"], official[provider], "/s", quotient))
    what = f"{model['serving']['candidates']} candidates of a user, T {model['serving']['T']}, p50"
    for provider, states in (("dien-fast", ""), ("dien-fast, states kept", ", states kept")):
        quotient = serving["reference"] / serving[provider]
        body.append(row(what + states, serving["reference"], serving[provider], "ms", quotient))
    for layer in model["memory"]:
        mib, size = layer["MiB"], show_size((layer["B"], layer["T"], layer["H"]))
        quotient = mib["reference"] / mib["dien-fast"]
        body.append(
            row(f"memory of an `Interest` step, {size}", mib["reference"], mib["dien-fast"], "MiB", quotient)
        )
    return table(["", "reference", "dien-fast", ""], body)


def parts_table(parts: list[dict[str, Any]]) -> str:
    """Say which share of a step of the interest layer each part takes, and how near to sgemm it computes."""
    body = []
    for row in parts:
        total, cells = sum(row["milliseconds"].values()), []
        for name, value in row["milliseconds"].items():
            rate = row["share of sgemm"].get(name)
            cells.append(f"{100 * value / total:.0f} %" + (f" ({100 * rate:.0f} %)" if rate is not None else ""))
        body.append([show_size((row["B"], row["T"], row["H"])), *cells])
    return table(["B, T, H", *parts[0]["milliseconds"]], body)


def peers_table(peers: dict[str, Any]) -> str:
    """Return the times of other libraries' models before and after dien_fast.accelerate."""

    def cell(found: dict[str, Any]) -> str:
        before, after = (found["milliseconds"][name] for name in ("library", "accelerated"))
        return f"**{show_ratio(before / after)}** ({show_milliseconds(before)} → {show_milliseconds(after)})"

    body = [
        [library, show_size(tuple(row["size"])), cell(row["recurrence"]), cell(row["step"])]
        for library, result in sorted(peers.items())
        for row in result["sizes"]
    ]
    return table(["library", "B, T, H", "AUGRU forward + backward", "whole training step"], body)


def trainings_table(libraries: dict[str, Any]) -> str:
    """Return what an epoch through other libraries' own trainers takes, and the test AUC, on two threads."""
    body = []
    for library, result in sorted(libraries.items()):
        before, after = (result["trainings"][f"{kind}, 2 threads"] for kind in ("unpatched", "accelerated"))
        seconds, fewer = before["epoch_seconds"], after["epoch_seconds"]
        cell = f"**{show_ratio(seconds / fewer)}** ({seconds:.1f} → {fewer:.1f})"
        aucs = [f"{training['auc']:.4f}" for training in (before, after)]
        counts = [str(result["epochs"]), str(result.get("seeds", 1))]
        body.append([f"{library} {result['version']}", cell, *counts, *aucs])
    return table(["library", "an epoch", "epochs", "seeds", "test AUC", "accelerated"], body)


def block(
    name: str,
    speed: dict[str, Any],
    memory: dict[str, Any] | None,
    model: dict[str, Any] | None = None,
    peers: dict[str, Any] | None = None,
    trainings: dict[str, Any] | None = None,
) -> str:
    """Return the README's section between its marks."""
    rows, peak = rows_of(speed), speed["sgemm GFLOP/s"]
    seconds = [f"{row['compile seconds']:.0f}" for row in speed["rows"] if "compile seconds" in row]
    compiled = f" torch.compile took {' and '.join(seconds)} s for its one pattern of lengths." if seconds else ""
    kept = ", with freed memory kept in the process" if speed.get("memory kept") else ""
    bound = "".join(f", {name}={value}" for name, value in speed.get("OpenMP", {}).items())
    notes = []
    if "call microseconds" in speed:
        microseconds = f"{speed['call microseconds']:.0f}"
        notes.append(
            f"A call with next to nothing to compute (B 1, T 1, H 32, inference) takes {microseconds} µs."
        )
    if memory:
        notes.append(memory_text(memory))
    whole = []
    if model:
        whole = [
            "Whole models, float32, the same weights and the same fused Adam on both sides. The official sizes "
            "are those of the paper's code: item and category of 18 numbers each, H 36, histories of 25 to 100 "
            "events, batch 128, tables of 100,000 rows. Medians over three processes, whose plain loops differ by "
            "a third and more:",
            model_table(model),
            "Where a training step of `Interest` spends its time, under a profiler, and in brackets the rate of "
            "each part's multiplications and additions, as a plain layer has them, as a share of sgemm's:",
            parts_table(model["parts"]),
        ]
    if peers:
        whole += [
            "Other libraries' DIEN, as they are and after `dien_fast.accelerate`: their own models of one item "
            "feature of H numbers, AUGRU, with negatives where the library has them, Adam, float32, by "
            "`benchmarks/peers.py`; in brackets the milliseconds of both:",
            peers_table(peers),
        ]
    if trainings:
        whole += [
            "Their DIEN trained on MovieLens-100K through the libraries' own trainers, data loading included, "
            "batch 256, by `make test-peers`; in brackets the seconds of both, AUCs are means over the seeds:",
            trainings_table(trainings["libraries"]),
        ]
    paragraphs = [
        "Against the reference loop (the article's way), ragged lengths, float32, "
        f"{speed['threads']} threads; in brackets the milliseconds of both:",
        loop_table(rows),
        "`Interest` is the whole layer with the auxiliary loss and batch normalisation in training mode.",
        *whole,
        "Against what else torch offers for the recurrence: how many times as long as dien-fast it takes, in "
        "brackets its milliseconds. torch.nn.GRU computes another function, without attention; it shows what "
        f"torch itself can do with such a batch.{compiled}",
        others_table(rows),
        "Against oneDNN 3.2's `lbr_augru` (as `augru_official`), which takes dense input alone and pads ragged "
        "lengths; its gradients are wrong, so of its backward only the time counts:",
        onednn_table(rows),
        "GFLOP/s on dense input, counting 12 H² a step forward and 36 H² with backward, and the share of sgemm "
        f"({peak:.0f} GFLOP/s in the same run):",
        rates_table(rows, peak),
        f"![How many times as long as dien-fast each provider takes](benchmarks/results/{picture(name).name})",
        losses(rows),
        *notes,
        f"Measured on {speed['machine']['cores']} cores of {speed['machine']['cpu']}, backend "
        f"{speed['backend']}, torch {speed['versions']['torch']}, medians of {speed['rounds']} interleaved "
        f"runs of 5 ms or one call{bound}{kept}, by `make bench`; the figures are in "
        f"`benchmarks/results/cpu-{name}.json`.",
    ]
    return "\n\n".join(text if text[0] in "|!" else textwrap.fill(text, 120, **WHOLE_WORDS) for text in paragraphs)


def replaced(readme: str, section: str) -> str:
    """Return the README with another section on speed."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README must have {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"


def named(readme: str) -> str:
    """Return the name of the results that the README tells of."""
    found = re.search(r"benchmarks/results/cpu-([\w-]+)\.json", readme)
    if found is None:
        raise ValueError("the README names no benchmarks/results/cpu-NAME.json; give NAME")
    return found[1]


def picture(name: str) -> Path:
    return machine.RESULTS / f"speed-{name}.svg"


def draw(speed: dict[str, Any], path: Path) -> None:
    """Draw a point per size and provider; left of the line at 1 dien-fast loses."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "speed"
    from matplotlib import pyplot

    rows = rows_of(speed)
    panels = [((FORWARD, "augru_official forward, ragged"), "forward")]
    panels += [((BOTH, "augru_official forward + backward, ragged"), "forward + backward")]
    sizes = sizes_of(rows, *(part for parts, _ in panels for part in parts))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 1.5 + 0.3 * len(sizes)), sharey=True, layout="constrained")
    handles = {}
    for axis, (parts, title) in zip(axes, panels, strict=True):
        for colour, name in zip(COLOURS, ("reference loop", *OTHERS, "oneDNN"), strict=True):
            part = parts[name == "oneDNN"]
            points = [(ratio(rows.get((part, size)), name), at) for at, size in enumerate(sizes)]
            shown = [point for point in points if point[0] is not None]
            if shown:
                handles[name] = axis.scatter(*zip(*shown, strict=True), color=colour, s=28, alpha=0.85)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=title, xscale="log", xlabel="time / time of dien-fast")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.grid(color="#dddddd")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(sizes)), [show_size(size) for size in sizes])
    axes[0].set_ylabel("B, T, H (ragged)")
    axes[0].invert_yaxis()
    labels = [f"{name} (another function)" if name.startswith("nn.GRU") else name for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def load(kind: str, name: str) -> dict[str, Any] | None:
    path = machine.RESULTS / f"{kind}-{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main(arguments: list[str] | None = None) -> int:
    parser = machine.parser_of(__doc__)
    parser.add_argument("name", nargs="?", help="of the results")
    parser.add_argument("--here", action="store_true", help="the results of this machine")
    parser.add_argument("--check", action="store_true", help="fail if the README differs")
    given = parser.parse_args(arguments)
    readme = README.read_text()
    name = given.name or (machine.here(given.threads) if given.here else named(readme))
    speed = load("cpu", name)
    if speed is None:
        parser.error(f"there is no {machine.RESULTS / f'cpu-{name}.json'}; run benchmarks/speed.py")
    kinds = ("memory", "model", "peers", "trainings")
    written = replaced(readme, block(name, speed, *(load(kind, name) for kind in kinds)))
    if given.check:
        if written != readme:
            print("README.md differs from benchmarks/results; run benchmarks/report.py", file=sys.stderr)
        return int(written != readme)
    README.write_text(written)
    draw(speed, picture(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
