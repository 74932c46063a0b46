"""From a source of clicks to a trained run in its directory: what ``dien-fast train`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from dien_fast.data import EpochLoader
from dien_fast.data.inspection import vocabulary_lines, warning_lines
from dien_fast.data.sources import LOAD_STEPS, Parts, PreparedParts, Source
from dien_fast.lines import print_line
from dien_fast.models import MODELS
from dien_fast.nn.embedding import RemoteEmbedding
from dien_fast.progress import steps
from dien_fast.training.accelerator import check_loaders, make_accelerator, missing_processes
from dien_fast.training.agreement import check_same_everywhere
from dien_fast.training.config import RunConfig, write_json
from dien_fast.training.directory import RunDirectory
from dien_fast.training.interval import seconds_of
from dien_fast.training.loop import fit, seed_everything
from dien_fast.training.metrics import auc
from dien_fast.training.position import StopRequest
from dien_fast.training.runs import build_model, prepare_directory, schema_for
from dien_fast.training.scoring import evaluate
from dien_fast.training.sharded.checks import check_sharded
from dien_fast.training.sharded.tables import sharded_tables
from dien_fast.training.trackers import check_trackers, start_trackers, track_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dien_fast.data import Encoders, Schema

# Sequences scored in eval mode need no gradients, so more of them fit at once.
_SCORING_BATCH = 1024
# The places that ranking metrics look at.
RANKS = 10


def train_run(
    source: Source,
    config: RunConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    cpu: bool = False,
    num_workers: int = 0,
    progress: bool = True,
    log: Callable[[str], None] = print_line,
    track: Sequence[str] = (),
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Read the data, train, and report the metrics of the best epoch.

    Data and settings are checked before ``directory`` is touched. Encoders, popularity and negatives learn
    from the training rows alone.

    Args:
        source: where the rows come from.
        config: model and hyper-parameters; its schema, data and fingerprint are filled in here.
        directory: the run directory to write.
        resume: go on where a killed run in ``directory`` stopped.
        overwrite: replace the run in ``directory``; it stays until the new one has its first checkpoint.
        cpu: stay on the CPU though there is a GPU.
        num_workers: processes that prepare batches beside this one; 0 prepares them in the loop.
        progress: show progress bars on stderr.
        log: takes each line of the report; under several processes rank 0 alone reports.
        track: trackers that get the settings and the metrics of each epoch: "tensorboard", "mlflow", "wandb".
        on_epoch: as in :func:`dien_fast.training.fit`.
        stop: as in :func:`dien_fast.training.fit`.

    Returns:
        What ``metrics.json`` holds: best_epoch, valid_auc, valid_logloss, valid_gauc, test_auc, test_logloss,
        test_gauc, the test rows' ranking metrics as test_hr@10, test_ndcg@10 and test_mrr, and for synthetic data
        best_reachable_auc.

    Raises:
        DienFastError: one of its kinds, for whatever is wrong with data, settings or directory.
        TrainingStopped: if ``stop`` asked for it.

    Example:
        >>> train_run(Source("synthetic"), RunConfig(epochs=2), "runs/synthetic")  # doctest: +SKIP
    """
    check_trackers(track)
    accelerator = _accelerator(config, cpu)
    say = log if accelerator.is_main_process else _say_nothing
    with missing_processes(accelerator), RunDirectory(directory) as run:
        if accelerator.is_main_process:
            # At once, and not after minutes of reading.
            run.check(resume=resume, overwrite=overwrite)
        prepared = _prepare(source, config, accelerator, num_workers, progress)
        for line in _description(prepared, accelerator):
            say(line)
        if accelerator.is_main_process:
            # Another training may have come first while this one read its rows.
            run.check(resume=resume, overwrite=overwrite)
            prepare_directory(run, prepared.config, prepared.encoders, resume=resume)
        accelerator.wait_for_everyone()
        if resume:
            say(f"resuming {directory}")
        start_trackers(accelerator, track, run.path, asdict(prepared.config))
        with sharded_tables(prepared.model, prepared.config):
            history = fit(
                prepared.model,
                prepared.train,
                prepared.valid,
                settings=prepared.config,
                run_directory=run,
                resume=resume,
                fingerprint=prepared.config.fingerprint,
                identity=prepared.config.identity(),
                accelerator=accelerator,
                progress=progress,
                log=log,
                on_epoch=_each(partial(track_epoch, accelerator), on_epoch),
                stop=stop,
            )
            scores = _test_scores(prepared, progress)
            metrics = _metrics(history, scores, prepared)
        track_epoch(accelerator, {"epoch": metrics["best_epoch"]} | {f"test_{k}": v for k, v in scores.items()})
        if accelerator.is_main_process:
            write_json(run.path / "metrics.json", metrics)
    for line in report(metrics, directory):
        say(line)
    # No process leaves while another still waits for it.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


def _accelerator(config: RunConfig, cpu: bool) -> Accelerator:
    """Return the Accelerator for these settings."""
    if config.tables == "torchrec":
        check_sharded(config, cpu)
        cpu = True
    timeout = seconds_of("process_timeout", config.process_timeout)
    return make_accelerator(config.mixed_precision, config.gradient_accumulation, cpu, timeout)


@dataclass
class _Prepared:
    """All that :func:`fit` and the report need: the rows, encoded, and a new model.

    Attributes:
        tables: the rows.
        config: with schema, data and fingerprint filled in.
        encoders: learnt from the training rows.
        train, valid, test: batches of the three parts.
        model: with its initial weights.
    """

    tables: Parts | PreparedParts
    config: RunConfig
    encoders: Encoders
    train: EpochLoader
    valid: EpochLoader
    test: EpochLoader
    model: torch.nn.Module


def _prepare(
    source: Source, config: RunConfig, accelerator: Accelerator, num_workers: int, progress: bool
) -> _Prepared:
    """Read and encode the rows of this process, and build the model."""
    show = progress and accelerator.is_main_process
    # One process downloads, the others find the files.
    with steps(LOAD_STEPS, "reading", show), accelerator.main_process_first():
        tables = source.open(config.seed)
    schema = schema_for(config.model, tables.schema)
    with steps(_encoding_steps(schema), "encoding", show):
        encoders = tables.learn(schema)
        config = replace(config, schema=schema.to_dict(), data=asdict(source), fingerprint=encoders.fingerprint())
        train, valid, test = make_loaders(
            tables,
            schema,
            encoders,
            config,
            num_workers=num_workers,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )
    check_loaders(train, valid, accelerator)
    seed_everything(config.seed, 0)
    model = build_model(config, encoders, without_tables=config.tables == "torchrec")
    prepared = _Prepared(tables, config, encoders, train, valid, test, model)
    if accelerator.num_processes > 1:
        check_same_everywhere(_of_all_processes(prepared))
    return prepared


def _of_all_processes(prepared: _Prepared) -> dict[str, Any]:
    """Return what the processes must have in common: the settings and the rows."""
    parts = {"training": prepared.train, "validation": prepared.valid, "test": prepared.test}
    rows = {
        f"{name} rows": f"{len(loader.dataset):,} with checksum {loader.dataset.checksum():08x}"
        for name, loader in parts.items()
    }
    return prepared.config.of_all_processes() | rows


def _description(prepared: _Prepared, accelerator: Accelerator) -> list[str]:
    """Return the lines that say what is about to be trained."""
    parts = {
        "training": prepared.train.dataset,
        "validation": prepared.valid.dataset,
        "test": prepared.test.dataset,
    }
    counts = [f"{len(dataset):,} {name}" for name, dataset in parts.items()]
    return [
        f"data: {prepared.config.data['dataset']}, {counts[0]}, {counts[1]} and {counts[2]} rows",
        prepared.tables.split,
        *prepared.tables.notes,
        *vocabulary_lines(prepared.encoders, parts),
        *warning_lines(prepared.train.dataset, prepared.encoders, "training"),
        f"model: {_describe(prepared.config, prepared.model)}; {_describe_device(accelerator)}",
    ]


def make_loaders(
    tables: Parts | PreparedParts,
    schema: Schema,
    encoders: Encoders,
    config: RunConfig,
    *,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> tuple[EpochLoader, EpochLoader, EpochLoader]:
    """Return the loaders of the training (shuffled), validation and test rows, checked.

    Negatives come from the training rows' catalogue: new ones each epoch in training, fixed ones elsewhere.
    """
    loaders: list[EpochLoader] = []
    for dataset in tables.datasets(schema, encoders, config.seed):
        training_rows = not loaders
        loaders.append(
            EpochLoader(
                dataset,
                config.batch_size if training_rows else _SCORING_BATCH,
                shuffle=training_rows,
                seed=config.seed,
                num_workers=num_workers,
                rank=rank,
                world_size=world_size,
                pin_memory=pin_memory,
            )
        )
    return loaders[0], loaders[1], loaders[2]


def _encoding_steps(schema: Schema) -> int:
    """Return how many steps :func:`fit_encoders` and :func:`make_loaders` report."""
    columns = [*schema.numeric, *schema.categorical, *schema.sequences]
    if schema.negatives == "columns":
        columns += schema.negative_features()
    drawn = schema.groups if schema.negatives in ("uniform", "popularity") else []
    # Each column is learnt from the training rows, then encoded in each of the three parts; times are not learnt.
    return 4 * len(columns) + 3 * schema.timed_groups() + len(drawn)


def report(metrics: dict[str, Any], directory: str | Path) -> list[str]:
    """Return the lines that close a training run; the last is ``test AUC: 0.xxxx``."""
    lines = [
        f"best epoch {metrics['best_epoch']}: {_line(metrics, 'valid')}",
        f"test rows: {_line(metrics, 'test')}",
    ]
    if metrics.get("best_reachable_auc") is not None:
        lines.append(f"best reachable test AUC: {metrics['best_reachable_auc']:.4f}")
    lines += [f"written to {directory}", f"test AUC: {metrics['test_auc']:.4f}"]
    return lines


def _line(metrics: dict[str, Any], part: str) -> str:
    shown = [(name, metrics[f"{part}_{name}"]) for name in ("auc", "logloss", "gauc")]
    return " ".join(f"{name} {value:.4f}" for name, value in shown if value == value)


def _test_scores(prepared: _Prepared, progress: bool) -> dict[str, float]:
    aux_weight = prepared.config.aux_weight
    return evaluate(prepared.model, prepared.test, aux_weight=aux_weight, k=RANKS, progress=progress)


def _metrics(history: pd.DataFrame, scores: dict[str, float], prepared: _Prepared) -> dict[str, Any]:
    best = history.loc[history["valid_auc"].idxmax()]
    metrics: dict[str, Any] = {"best_epoch": int(best["epoch"]), "epochs": len(history)}
    metrics |= {f"valid_{name}": float(best[f"valid_{name}"]) for name in ("auc", "logloss", "gauc")}
    metrics |= {f"test_{name}": value for name, value in scores.items() if name != "loss"}
    tables, in_time = prepared.tables, MODELS[prepared.config.model].uses_sessions
    best_column = tables.best_column_in_time if in_time else tables.best_column
    if best_column is not None and isinstance(tables, Parts):
        labels, best_scores = (tables.test[name].to_numpy() for name in (tables.schema.label, best_column))
        metrics["best_reachable_auc"] = auc(labels, best_scores)
    return metrics


def _describe(config: RunConfig, model: torch.nn.Module) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    elsewhere = [module for module in model.modules() if isinstance(module, RemoteEmbedding)]
    weights += sum(table.num_embeddings * table.embedding_dim for table in elsewhere)
    kind = MODELS[config.model]
    # A word speaks for itself, a number does not.
    details = [value if isinstance(value, str) else f"{name}: {value}" for name, value in config.options.items()]
    if kind.uses_negatives:
        details.append(f"negatives: {config.schema['negatives']}")
    shown = f" ({', '.join(details)})" if details else ""
    return f"{kind.__name__}{shown}, {weights:,} weights"


def _describe_device(accelerator: Any) -> str:
    where = str(accelerator.device)
    if accelerator.device.type == "cpu":
        where += f", {torch.get_num_threads()} threads"
    if accelerator.num_processes > 1:
        where += f", {accelerator.num_processes} processes"
    return where


def _each(*takers: Callable[[Mapping[str, float]], None] | None) -> Callable[[Mapping[str, float]], None]:
    """Return a function that gives a row of the history to each of ``takers``."""

    def take(row: Mapping[str, float]) -> None:
        for taker in takers:
            if taker is not None:
                taker(row)

    return take


def _say_nothing(line: str) -> None:
    """Take a line that another rank prints."""
