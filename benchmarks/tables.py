"""The tables of the README and of docs/benchmarks.md, as Markdown, each from one results file."""

from __future__ import annotations

from typing import Any

FORWARD, BOTH = "AUGRU forward", "AUGRU forward + backward"
LAYER = "Interest forward + backward"
OTHERS = ("scripted loop", "torch.compile loop", "nn.GRU packed", "nn.GRU padded")
NAMES = {
    "deepctr-torch": "DeepCTR-Torch",
    "fuxictr": "FuxiCTR",
    "prediction-flow": "prediction-flow",
    "recbole": "RecBole",
    "torch-rechub": "torch-rechub",
}
SERVED = {
    "run": "`Run.score_candidates`, from words",
    "encoded": "the model's `score_candidates`, on encoded features",
    "http": "`dien-fast serve`, from JSON to JSON",
    "package": "`.pt2` file called from Python, on encoded features",
    "cpp": "`.pt2` file in `examples/serve_cpp`, from words",
    "onnx": "`.onnx` file in ONNX Runtime, on encoded features",
    "loop": "reference loop, on encoded features",
    "scripted": "the same, its loop compiled by TorchScript",
}
RATES = [(1024, 50, 32), (1024, 100, 64), (256, 200, 128)]

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
    parts = (FORWARD, BOTH, LAYER)
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
    for provider, what in (("dien-fast", ""), ("dien-fast, sparse tables", ", `--table-optimizer sparse-adam`")):
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


def sessions_table(rows: list[dict[str, Any]]) -> str:
    """Return the times of DSIN's layer in DeepCTR and here."""

    def cell(times: dict[str, float]) -> str:
        before, after = times["DeepCTR"], times["dien-fast"]
        return f"**{show_ratio(before / after)}** ({show_milliseconds(before)} → {show_milliseconds(after)})"

    passes = ("forward", "forward + backward")
    body = [[", ".join(str(row[name]) for name in "BKLD"), *(cell(row[what]) for what in passes)] for row in rows]
    return table(["B, K, L, D", *passes], body)


def sizes_table(milliseconds: dict[str, dict[str, float]]) -> str:
    """Return what a step takes with each optimizer of tables, and the spread over the sizes but the smallest."""
    sizes = list(next(iter(milliseconds.values())))
    body = []
    for optimizer, times in milliseconds.items():
        large = [times[size] for size in sizes[1:]]
        spread = f"{100 * (max(large) / min(large) - 1):.0f} %"
        body.append([f"`{optimizer}`", *(f"{times[size]:.0f}" for size in sizes), spread])
    heads = [f"{int(size):,} rows" for size in sizes]
    return table(["", *heads, f"slowest over fastest, from {int(sizes[1]):,} rows on"], body)


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


def readme_table(speed: dict[str, Any], model: dict[str, Any] | None, trainings: dict[str, Any] | None) -> str:
    """Return the README's one table: a few rows of each of the others."""
    rows = rows_of(speed)
    body = []
    for part, what, sizes in (
        (BOTH, "AUGRU recurrence, forward + backward", [(128, 50, 32), (64, 50, 768)]),
        (LAYER, "`Interest`, forward + backward", [(128, 50, 32), (1024, 100, 64)]),
    ):
        for size in sizes:
            row = rows.get((part, size))
            if row is not None:
                before, after = (row["milliseconds"][name] for name in ("reference loop", "dien-fast"))
                named = ", ".join(f"{letter} {value}" for letter, value in zip("BTH", size, strict=True))
                body.append([f"{what}, {named}", *_before_after(before, after, "ms")])
    if model:
        step, epoch = model["step"]["milliseconds"], model["epoch"]
        seconds, serving = epoch["seconds"], model["serving"]
        times, memory = serving["p50 milliseconds"], max(model["memory"], key=lambda row: row["MiB"]["reference"])
        size = ", ".join(f"{letter} {memory[letter]}" for letter in "BTH")
        what = f"DIEN, epoch of {epoch['rows']:,} rows of MovieLens-100K"
        body += [
            ["DIEN, training step, batch of 128", *_before_after(step["reference"], step["dien-fast"], "ms")],
            [what, *_before_after(seconds["article's pipeline"], seconds["dien-fast"], "s")],
            [
                f"{serving['candidates']} candidates of one user, {serving['T']} events",
                *_before_after(times["reference"], times["dien-fast"], "ms"),
            ],
            [
                f"memory of a step of `Interest`, {size}",
                *_before_after(memory["MiB"]["reference"], memory["MiB"]["dien-fast"], "MiB"),
            ],
        ]
    if trainings:
        body.append(_libraries_row(trainings["libraries"]))
    return table(["", "before", "dien-fast", "gain"], body)


def scaling_table(milliseconds: dict[str, float], batch: int) -> str:
    """Return a row for each number of processes: its step, its rows a second, and these against one process's."""
    rates = {number: 1000 * batch * int(number) / taken for number, taken in milliseconds.items()}
    body = [
        [number, show_milliseconds(milliseconds[number]), f"{rate:,.0f}", show_ratio(rate / rates["1"])]
        for number, rate in rates.items()
    ]
    return table(["processes", "ms a step", "rows/s", "of one process"], body)


def _libraries_row(libraries: dict[str, Any]) -> list[str]:
    """Return the README's row for all libraries: the smallest and the largest of their figures."""
    kinds = ("unpatched", "accelerated")
    seconds = [
        [result["trainings"][f"{kind}, 2 threads"]["epoch_seconds"] for kind in kinds]
        for result in libraries.values()
    ]
    columns = [*zip(*seconds, strict=True), [before / after for before, after in seconds]]
    before, after, gain = (sorted({f"{end(column):.1f}" for end in (min, max)}, key=float) for column in columns)
    name = f"epoch of a library's own DIEN, accelerated ({len(libraries)} libraries)"
    return [name, f"{' to '.join(before)} s", f"{' to '.join(after)} s", f"**{'x to '.join(gain)}x**"]


def _before_after(before: float, after: float, unit: str) -> list[str]:
    shown = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (before, after)]
    return [*(f"{value} {unit}" for value in shown), f"**{show_ratio(before / after)}**"]


def step_ratios(model: dict[str, Any] | None, peers: dict[str, Any] | None) -> list[float]:
    """Return how many times as fast the training step of each whole model is."""
    times = [row["step"]["milliseconds"] for result in (peers or {}).values() for row in result["sizes"]]
    found = [row["library"] / row["accelerated"] for row in times]
    if model:
        step, official = model["step"]["milliseconds"], model["official"]["milliseconds"]
        found += [step["reference"] / step["dien-fast"], official["reference"] / official["dien-fast"]]
    return found


def gains(
    model: dict[str, Any] | None, peers: dict[str, Any] | None, trainings: dict[str, Any] | None
) -> list[tuple[str, float, int]]:
    """Return what is compared, how many times as fast it is, and a number that tells models from libraries."""
    found: list[tuple[str, float, int]] = []
    if model:
        step, seconds = model["step"]["milliseconds"], model["epoch"]["seconds"]
        official, serving = model["official"]["milliseconds"], model["serving"]["p50 milliseconds"]
        found += [
            ("DIEN, training step, ML-100K", step["reference"] / step["dien-fast"], 0),
            ("DIEN, epoch with its data, ML-100K", seconds["article's pipeline"] / seconds["dien-fast"], 0),
            ("DIEN, training step, official sizes", official["reference"] / official["dien-fast"], 0),
            ("200 candidates of a user", serving["reference"] / serving["dien-fast"], 0),
        ]
    for library, result in sorted((peers or {}).items()):
        for row in result["sizes"]:
            times = row["step"]["milliseconds"]
            what = f"{NAMES.get(library, library)}, training step, {show_size(tuple(row['size']))}"
            found.append((what, times["library"] / times["accelerated"], 1))
    for library, result in sorted(trainings["libraries"].items()) if trainings else []:
        before, after = (result["trainings"][f"{kind}, 2 threads"] for kind in ("unpatched", "accelerated"))
        what = f"{NAMES.get(library, library)}, epoch of its trainer"
        found.append((what, before["epoch_seconds"] / after["epoch_seconds"], 2))
    return found


def prepared_table(of_rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of docs/prepared.md: what prepared data cost, and the same rows in memory.

    Args:
        of_rows: the figures of each stage, by number of rows.
    """
    body = []
    for rows, stages in sorted(of_rows.items(), key=lambda item: -int(item[0])):
        for kind, label in (("prepared", "prepared"), ("memory", "in memory")):
            read, trained = stages.get(f"read-{kind}"), stages.get(f"train-{kind}")
            if read is None or trained is None:
                continue
            prepare = stages["prepare"] if kind == "prepared" else None
            body.append(
                [
                    f"{int(rows):,}, {label}",
                    f"{prepare['rows_per_second']:,} rows/s, {prepare['peak_mib']:,} MiB" if prepare else "",
                    f"{read['first_batch_s']:.1f} s",
                    f"{read['rows_per_second']:,} rows/s, {read['peak_mib']:,} MiB",
                    f"{trained['rows_per_second']:,} rows/s, {trained['peak_mib']:,} MiB",
                ]
            )
    return table(["rows", "`dien-fast prepare`", "first batch", "reading alone", "training"], body)


def serving_table(serving: dict[str, Any]) -> str:
    """Return what serving.py measured, by way and by T."""
    found = serving["T"]
    head = [column for steps in found for column in (f"T {steps}: ms alone", f"T {steps}: requests a second")]
    body = []
    for way, name in SERVED.items():
        cells = []
        for of_ways in found.values():
            one = of_ways.get(way, {})
            cells.append(show_milliseconds(one["alone"]) if one else "")
            cells.append(f"{one['highest_rate']:,.0f}" if "highest_rate" in one else "")
        if any(cells):
            body.append([name, *cells])
    return table(["way", *head], body)
