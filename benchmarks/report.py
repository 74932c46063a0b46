"""Writes the figures and pictures of the README and of the pages in docs, from the results of the other scripts.

    python benchmarks/report.py [NAME | --here] [--check]

NAME is that of the results, such as zen3-2-threads for ``results/cpu-zen3-2-threads.json``. Beside that file
there may be ``model-zen3-2-threads.json``, ``memory-...``, ``peers-...``, ``trainings-...``, ``dsin-...``,
``embeddings-...`` and ``serving-...``; without the last, another machine's counts. What the models reach,
``auc-TASK.json``, ``sharding.json`` and ``prepared.json`` are of no certain machine. Without NAME it is that of
the results that docs/benchmarks.md shows now. ``--here`` means the results of this machine. ``--check`` changes
nothing and fails if a page differs.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import auc
import auc_tables
import charts
import gpu_floors
import gpu_layer
import gpu_tables
import issue_clocks
import machine
import tables

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
CUDA = ROOT / "docs" / "cuda-kernels.md"
PREPARED = ROOT / "docs" / "prepared.md"
LARGE = ROOT / "docs" / "large-tables.md"
MODELS = ROOT / "docs" / "models.md"
WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}


class Results(NamedTuple):
    """What the scripts saved on one machine; None where a script did not run."""

    name: str
    speed: dict[str, Any]
    memory: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    peers: dict[str, Any] | None = None
    trainings: dict[str, Any] | None = None
    dsin: dict[str, Any] | None = None
    embeddings: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None


def load(kind: str, name: str) -> dict[str, Any] | None:
    path = machine.RESULTS / f"{kind}-{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def results_of(name: str) -> Results | None:
    speed = load("cpu", name)
    if speed is None:
        return None
    found = {kind: load(kind, name) for kind in Results._fields[2:]}
    if found["serving"] is None:  # of another machine, which the text names
        others = sorted(machine.RESULTS.glob("serving-*.json"))
        found["serving"] = json.loads(others[-1].read_text()) if others else None
    return Results(name, speed, **found)


def paragraphs(*texts: str) -> str:
    """Join paragraphs, tables and pictures; paragraphs are wrapped."""
    return "\n\n".join(text if text[0] in "|!# " else textwrap.fill(text, 120, **WHOLE_WORDS) for text in texts)


def picture(text: str, path: Path) -> str:
    return f"![{text}](../benchmarks/results/{path.name})"


def summary(results: Results) -> str:
    """Return the README's sentence on how much faster things are."""
    ratios = tables.step_ratios(results.model, results.peers)
    text = f"On {processor(results.speed)}, "
    if ratios:
        text += (
            f"a training step of a whole DIEN is {min(ratios):.1f} to {max(ratios):.1f} times as fast, depending "
            "on the model and the library; "
        )
    if results.model:
        serving = results.model["serving"]
        times = serving["p50 milliseconds"]
        text += (
            f"scoring {serving['candidates']} candidates of one user is "
            f"{times['reference'] / times['dien-fast']:.0f} times as fast; "
        )
    return paragraphs(text + "[Speed](#speed) has the conditions.")


def processor(speed: dict[str, Any]) -> str:
    found = speed["machine"]
    generation = re.match(r"zen(\d)", found.get("name", ""))
    return f"{found['cores']} cores of {found['cpu']}" + (f" (Zen {generation[1]})" if generation else "")


def readme_block(results: Results) -> str:
    """Return the README's section on speed between its marks."""
    speed = results.speed
    conditions = (
        f"Medians on {processor(speed)}, {speed['threads']} threads, backend {speed['backend']}, torch "
        f"{speed['versions']['torch']}, float32. B is the batch size, T the longest history, H the hidden size; "
        "histories have T/4 to T events. *Before* is a plain PyTorch loop over the time steps with the same "
        "weights, or the library as it is installed. `Interest` is the whole layer in training mode with its "
        "auxiliary loss. Epochs include data loading, those of the libraries use the library's own trainer. "
        "The gain shrinks as the hidden size grows, because matrix products then take most of the time anyway. "
        "[Benchmarks](docs/benchmarks.md) has every size, other machines, oneDNN, `torch.compile` and `nn.GRU`."
    )
    return paragraphs(tables.readme_table(speed, results.model, results.trainings), conditions)


def benchmarks_block(results: Results, others: list[Results]) -> str:
    """Return the figures of docs/benchmarks.md."""
    texts = ["## Conditions", conditions_text(results), *recurrence_texts(results)]
    if results.model:
        texts += model_texts(results.model)
    if results.peers:
        texts += [
            "## Other libraries, accelerated",
            "Each library's own DIEN with one item feature of H numbers, AUGRU, with negatives where the library "
            "has them, Adam, float32; as it is installed, and after `dien_fast.accelerate`. In brackets: "
            "milliseconds of both. By `benchmarks/peers.py`.",
            tables.peers_table(results.peers),
        ]
    if results.trainings:
        texts += [
            "The same models trained on MovieLens-100K by the library's own trainer, data loading included, batch "
            "256. In brackets: seconds of both. AUCs are means over the seeds. By `make test-peers`.",
            tables.trainings_table(results.trainings["libraries"]),
        ]
    if results.model or results.peers:
        texts.append(picture("Gains of whole models and libraries", charts.path("models", results.name)))
    if results.dsin:
        texts += session_texts(results.dsin)
    if results.serving:
        texts += serving_texts(results.serving)
    texts += alternatives_texts(results)
    if results.memory:
        texts += ["## Memory", tables.memory_text(results.memory)]
    for other in others:
        texts += [f"## Another machine: {other.name}", conditions_text(other), *recurrence_texts(other)[1:]]
        if other.dsin:
            texts += session_texts(other.dsin)[1:]
        if other.memory:
            texts.append(tables.memory_text(other.memory))
    return paragraphs(*texts)


def conditions_text(results: Results) -> str:
    speed = results.speed
    kept = ", with freed memory kept in the process" if speed.get("memory kept") else ""
    bound = "".join(f", {name}={value}" for name, value in speed.get("OpenMP", {}).items())
    text = (
        f"Measured on {processor(speed)}, {speed['threads']} threads{bound}{kept}, backend {speed['backend']}, "
        f"torch {speed['versions']['torch']}. Providers run interleaved in one process, after a check that their "
        f"results agree; a figure is the median of {speed['rounds']} runs of 5 ms or one call. sgemm reaches "
        f"{speed['sgemm GFLOP/s']:.0f} GFLOP/s there. The raw figures are in "
        f"`benchmarks/results/cpu-{results.name}.json`."
    )
    if "call microseconds" in speed:
        text += (
            f" A call with almost nothing to compute (B 1, T 1, H 32, inference) takes "
            f"{speed['call microseconds']:.0f} µs."
        )
    return text


def recurrence_texts(results: Results) -> list[str]:
    rows = tables.rows_of(results.speed)
    return [
        "## The recurrence and the interest layer",
        "Against the reference loop, which is the article's way: ragged lengths, float32. In brackets: the "
        "milliseconds of both. `Interest` is the whole layer in training mode, with the auxiliary loss and batch "
        "normalisation.",
        tables.loop_table(rows),
    ]


def model_texts(model: dict[str, Any]) -> list[str]:
    return [
        "## Whole models",
        "float32, the same weights and the same fused Adam on both sides. The official sizes are those of the "
        "paper's code: item and category of 18 numbers each, H 36, histories of 25 to 100 events, batch 128, "
        "tables of 100,000 rows. Medians over three processes; the plain loop's figures differ between processes "
        "by a third and more.",
        tables.model_table(model),
        "Shares of a training step of `Interest`, under a profiler. In brackets: how fast the part's "
        "multiplications and additions run, counted as in a plain layer, as a share of sgemm's rate.",
        tables.parts_table(model["parts"]),
    ]


def session_texts(dsin: dict[str, Any]) -> list[str]:
    versions = dsin["versions"]
    return [
        "## DSIN's layer",
        f"DSIN's layer against that of DeepCTR {versions['deepctr']} on TensorFlow {versions['tensorflow-cpu']} "
        "(CPU), for B users with K full sessions of L events, D wide; float32, 8 heads, "
        f"{dsin['threads']} threads. DeepCTR runs as a compiled graph. *Forward* is evaluation; *forward + "
        "backward* is training, with dropout and the gradients of inputs and weights. Each library has a process "
        f"of its own, and the two take turns; a figure is the median of {dsin['rounds']} turns. In brackets: "
        "milliseconds of both. By `benchmarks/dsin.py`.",
        tables.sessions_table(dsin["rows"]),
    ]


def serving_texts(serving: dict[str, Any]) -> list[str]:
    return [
        "## Serving under load",
        f"{serving['candidates']} candidates of one user with T events, {serving['D']} numbers an event, float32; "
        f"{processor(serving)}, threads that compute: {serving['threads']}, torch {serving['versions']['torch']}. "
        "*Alone* is the median of one request after the other. *Requests a second* is the highest rate with a "
        f"99th percentile of latency below {serving['limit_ms']:.0f} ms, when requests come at random times that "
        f"do not wait for answers, {serving['seconds']:g} s at each rate. Over HTTP, the clients run on the same "
        "cores. "
        "By `benchmarks/serving.py`.",
        tables.serving_table(serving),
    ]


def alternatives_texts(results: Results) -> list[str]:
    speed = results.speed
    rows, peak = tables.rows_of(speed), speed["sgemm GFLOP/s"]
    seconds = [f"{row['compile seconds']:.0f}" for row in speed["rows"] if "compile seconds" in row]
    compiled = (
        f" torch.compile took {' and '.join(seconds)} s to compile for one pattern of lengths." if seconds else ""
    )
    return [
        "## Against other ways to compute the recurrence",
        "How many times as long as dien-fast each takes; in brackets its milliseconds. `nn.GRU` computes another "
        "function, without attention: it shows what torch itself can do with such a batch." + compiled,
        tables.others_table(rows),
        "Against oneDNN 3.2's `lbr_augru`, which computes `augru_official`. It takes dense input only, so ragged "
        "lengths are padded for it. Its gradients are wrong; only the time of its backward pass is compared.",
        tables.onednn_table(rows),
        "GFLOP/s on dense input, counting 12 H² operations a step forward and 36 H² with backward, and the share "
        f"of sgemm ({peak:.0f} GFLOP/s in the same run).",
        tables.rates_table(rows, peak),
        picture("How many times as long as dien-fast each provider takes", charts.path("speed", results.name)),
        tables.losses(rows),
    ]


def sizes_block(found: list[Results]) -> str:
    """Return the figures of docs/large-tables.md, of the first machine that has some."""
    results = next(results for results in found if results.embeddings)
    sizes = results.embeddings
    assert sizes is not None
    text = (
        f"Milliseconds of a training step, by rows of each of two tables of {sizes['D']} numbers a row; batch "
        f"{sizes['B']}, histories of {sizes['T'][0]} to {sizes['T'][1]} events with as many negatives, ids drawn "
        f"uniformly; {processor(sizes)}, {sizes['threads']} threads, torch {sizes['versions']['torch']}; medians "
        f"of {sizes['rounds']} steps. By `benchmarks/embeddings.py`."
    )
    return paragraphs(text, tables.sizes_table(sizes["milliseconds"]))


def scaling_block() -> str:
    """Return what ``sharding.py`` saved, for docs/large-tables.md."""
    found = json.loads((machine.RESULTS / "sharding.json").read_text())
    of = found["machine"]
    text = (
        f"Weak scaling: every process has one thread, a batch of {found['B of a process']} rows with histories of "
        f"{found['T'][0]} to {found['T'][1]} events and as many negatives, and "
        f"{found['rows of a process']:,} rows of each of two tables of {found['D']} numbers a row; "
        f"{of['cores']} cores of {of['cpu']} ({of['name'].split('-')[0]}), "
        f"medians of {found['rounds']} steps. By `benchmarks/sharding.py`."
    )
    return paragraphs(text, tables.scaling_table(found["milliseconds"], found["B of a process"]))


def prepared_block() -> str:
    """Return what ``prepared.py`` saved, for docs/prepared.md."""
    found = json.loads((machine.RESULTS / "prepared.json").read_text())
    steps = next(iter(found["rows"].values()))["train-prepared"]["steps"]
    text = (
        f"Clicks with a price, a country, an item of {found['items']:,} and a history of up to 50 items; batch "
        f"{found['B']}, {steps:,} steps of DIEN with negatives; {processor(found)}, {found['threads']} threads. "
        "Memory is the highest resident set of each process, files that the system has mapped included. By "
        "`benchmarks/prepared.py`."
    )
    return paragraphs(text, tables.prepared_table(found["rows"]))


def measured_aucs() -> auc_tables.Measured:
    """Return what ``auc.py`` saved, by task."""
    paths = {name: machine.RESULTS / f"auc-{name}.json" for name in auc.TASKS}
    found = {
        name: auc_tables.complete(json.loads(path.read_text()), auc.variants_of(auc.TASKS[name]))
        for name, path in paths.items()
        if path.exists()
    }
    return {name: result for name, result in found.items() if result["rows"]}


def tasks_block(found: auc_tables.Measured) -> str:
    """Return the tables of docs/models.md on the models."""
    texts = [auc_tables.overview(found)]
    for name in auc_tables.COLUMNS:
        if name in found:
            result = found[name]
            texts += [f"## {result['title'].capitalize()}", auc_tables.conditions(result)]
            texts += [textwrap.indent(auc_tables.command(result, name), "    "), auc_tables.task_table(result)]
    if any(name in found for name in auc_tables.ABLATIONS):
        texts += ["## What the auxiliary loss adds", auc_tables.ablation_table(found)]
        for name in auc_tables.ABLATIONS:
            if name in found:
                result = found[name]
                texts += [f"{result['title'].capitalize()}: {auc_tables.conditions(result)}"]
                texts += [textwrap.indent(auc_tables.command(result, name), "    ")]
    return paragraphs(*texts)


def replaced(text: str, mark: str, section: str) -> str:
    """Return a page with another text between the marks ``<!-- MARK:begin -->`` and ``<!-- MARK:end -->``."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have {begin} and {end} once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{section}\n{end}{rest.split(end)[1]}"


def named(page: str) -> str:
    """Return the name of the results that docs/benchmarks.md shows first."""
    found = re.search(r"benchmarks/results/cpu-([\w-]+)\.json", page)
    if found is None:
        raise ValueError("docs/benchmarks.md names no benchmarks/results/cpu-NAME.json; give NAME")
    return found[1]


def pages(results: Results, others: list[Results]) -> dict[Path, str]:
    """Return the pages with these results."""
    aucs = measured_aucs()
    large = replaced(LARGE.read_text(), "sizes", sizes_block([results, *others]))
    readme = replaced(README.read_text(), "summary", summary(results))
    cuda = replaced(CUDA.read_text(), "predictions", gpu_floors.text())
    cuda = replaced(cuda, "measured", gpu_tables.text())
    readme = replaced(readme, "models", paragraphs(auc_tables.overview(aucs)))
    return {
        README: replaced(readme, "speed", readme_block(results)),
        BENCHMARKS: replaced(BENCHMARKS.read_text(), "results", benchmarks_block(results, others)),
        CUDA: replaced(replaced(cuda, "layer", gpu_layer.text()), "issue-clocks", issue_clocks.text()),
        LARGE: replaced(large, "scaling", scaling_block()),
        PREPARED: replaced(PREPARED.read_text(), "prepared", prepared_block()),
        MODELS: replaced(MODELS.read_text(), "tasks", tasks_block(aucs)),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = machine.parser_of(__doc__)
    parser.add_argument("name", nargs="?", help="of the results")
    parser.add_argument("--here", action="store_true", help="the results of this machine")
    parser.add_argument("--check", action="store_true", help="fail if a page differs")
    given = parser.parse_args(arguments)
    name = given.name or (machine.here(given.threads) if given.here else named(BENCHMARKS.read_text()))
    results = results_of(name)
    if results is None:
        parser.error(f"there is no {machine.RESULTS / f'cpu-{name}.json'}; run benchmarks/speed.py")
    found = sorted(path.stem.removeprefix("cpu-") for path in machine.RESULTS.glob("cpu-*.json"))
    others = [other for other in map(results_of, found) if other is not None and other.name != name]
    written = pages(results, others)
    if given.check:
        differ = [path.name for path, text in written.items() if path.read_text() != text]
        if differ:
            print(f"{', '.join(differ)}: not as benchmarks/results say; run benchmarks/report.py", file=sys.stderr)
        return int(bool(differ))
    for path, text in written.items():
        path.write_text(text)
    charts.draw_speed(results.speed, charts.path("speed", name))
    if results.model or results.peers:
        charts.draw_models(results.model, results.peers, results.trainings, charts.path("models", name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
