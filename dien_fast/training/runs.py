"""Runs: what a run directory holds, opened for use with :func:`load`.

config.json     model, hyper-parameters, schema, where the data came from, versions
encoders/       the vocabularies and quantiles, one JSON file per feature
best.pt         weights of the epoch with the best validation AUC
last.pt         weights, optimizer and history, to resume from
tables-N/       the embedding tables after epoch N, where several processes divide them (--tables torchrec)
history.csv     one row per epoch; loss.png and auc.png draw it
metrics.json    metrics on the validation and test rows at the best epoch
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dien_fast.errors import CheckpointError, DataError, DienFastError
from dien_fast.files import path_inside
from dien_fast.models import MODELS, AttentionGroup, ClickModel
from dien_fast.nn.embedding import RemoteEmbedding
from dien_fast.progress import steps
from dien_fast.training.checkpoints import check_weights, first_difference, load_checkpoint, load_weights
from dien_fast.training.config import RunConfig
from dien_fast.training.directory import RunDirectory, finish_replacement
from dien_fast.training.scoring import predict, to_device
from dien_fast.training.state import STATE_ENTRIES

if TYPE_CHECKING:
    from dien_fast.data.dataset import ClickDataset
    from dien_fast.data.fitting import Encoders
    from dien_fast.data.schema import Schema
    from dien_fast.training.candidates import Request

__all__ = [
    "Run",
    "RunConfig",
    "build_model",
    "load",
    "load_config",
    "model_arguments",
    "prepare_directory",
    "without_negatives",
]


def build_model(config: RunConfig, encoders: Encoders, *, without_tables: bool = False) -> ClickModel:
    """Build the model that ``config`` describes, with new weights from torch's generator.

    Args:
        config: model, sizes and schema.
        encoders: fitted to the training rows; they give the vocabulary sizes.
        without_tables: leave the embedding tables out, for a model that gets ``remote_tables``.

    Raises:
        DataError: if schema, encoders and sizes do not go together.

    Example:
        >>> model = build_model(run.config, run.encoders)  # doctest: +SKIP
    """
    kind = MODELS[config.model]
    if without_tables:
        kind = type(kind.__name__, (kind,), {"embedding_type": RemoteEmbedding, "__module__": kind.__module__})
    try:
        return kind(**model_arguments(config, encoders))
    except (ValueError, KeyError) as error:
        raise DataError(f"the schema does not fit the model: {error}") from error
    except RuntimeError as error:
        raise DienFastError(
            f"the model does not fit into memory: embedding_size {config.embedding_size}, "
            f"{sum(encoders.dimensions().values()):,} words"
        ) from error


def model_arguments(config: RunConfig, encoders: Encoders) -> dict[str, Any]:
    """Return the arguments with which the constructor makes the model that ``config`` describes.

    Args:
        config: as for :func:`build_model`.
        encoders: as for :func:`build_model`.
    """
    schema = config.click_schema
    negatives = schema.negatives != "none"
    of_groups = MODELS[config.model].group_options
    groups = [
        AttentionGroup(
            name=group.name,
            pairs=[
                {"ad": pair.ad, "pos_hist": pair.pos_hist} | ({"neg_hist": pair.neg_hist} if negatives else {})
                for pair in group.pairs
            ],
            hidden_layers=config.attention_hidden,
            att_dropout=config.attention_dropout,
            **{name: config.options[name] for name in of_groups},
        )
        for group in schema.groups
    ]
    return {
        "num_features": schema.numeric,
        "cat_features": schema.categorical,
        "seq_features": schema.sequence_features(),
        "cat_nums": encoders.dimensions(),
        "embedding_size": _embedding_sizes(schema, config.embedding_size),
        "attention_groups": groups,
        "mlp_hidden_layers": config.mlp_hidden,
        "mlp_activation": config.mlp_activation,
        "mlp_dropout": config.mlp_dropout,
        "use_negsampling": negatives and bool(groups),
        "shared_embeddings": schema.shared_embeddings(),
        **{name: value for name, value in config.options.items() if name not in of_groups},
    }


def _embedding_sizes(schema: Schema, usual: int) -> dict[str, int]:
    """Return the width of each categorical and sequence feature."""
    owners = schema.shared_embeddings() or {}
    sizes = {}
    for feature in (*schema.categorical, *schema.sequence_features()):
        # A feature that uses another's table has its width; negatives without a width of their own, the history's.
        sizes[feature] = schema.embedding_sizes.get(owners.get(feature, feature), usual)
    for pair in schema.pairs():
        if schema.negatives != "none" and pair.neg_hist not in schema.embedding_sizes:
            sizes[pair.neg_hist] = sizes[pair.pos_hist]
    return sizes


@dataclass
class Run:
    """A trained model with what it needs to read a table.

    Attributes:
        directory: where it was loaded from.
        config: its settings.
        schema: the meaning of the table's columns.
        encoders: its vocabularies.
        model: in eval mode.
        unknown: by column, how many words :meth:`score_candidates` met since the run was opened that training did
            not see; missing words count too.
    """

    directory: Path
    config: RunConfig
    schema: Schema
    encoders: Encoders
    model: ClickModel
    unknown: Counter[str] = field(default_factory=Counter, repr=False, compare=False)
    _process: int = field(default_factory=os.getpid, repr=False, compare=False)

    def predict(
        self,
        table: Any,
        *,
        batch_size: int = 1024,
        progress: bool = False,
        allow_unknown: bool = False,
        source: str | None = None,
    ) -> np.ndarray:
        """Return the click probability of each row of ``table``.

        Args:
            table: path of a CSV or Parquet file or of a directory of prepared data, whose test rows are scored, or
                anything that speaks Arrow: a pandas, Polars or pyarrow
                table; or a dataset made by :meth:`dataset`. It needs the feature columns of the schema, no label;
                words not seen in training and empty histories are fine.
            batch_size: rows scored at once; the result does not depend on it beyond rounding.
            progress: show a progress bar on stderr.
            allow_unknown: score the rows even if the model knows nearly no word of a column.
            source: what error messages call the table; by default its path.

        Returns:
            float32 ``[rows]`` in the table's order; of a table without rows, an empty array.

        Raises:
            DataError: if a column is missing or not what the schema says, or the model cannot read its words.

        Example:
            >>> dien_fast.load("runs/ml-100k").predict("new.csv")  # doctest: +SKIP
            array([0.31, 0.87], dtype=float32)
        """
        from dien_fast.data import ClickDataset, EpochLoader, read_table
        from dien_fast.data.prepared.manifest import is_prepared

        if isinstance(table, str | Path) and is_prepared(table):
            table = self.dataset(table)
        self._check_process()
        if not isinstance(table, ClickDataset):
            data = read_table(table, self.schema)
            if not data.num_rows and not data.num_columns:
                # pandas makes such a table of an empty list of records.
                return np.zeros(0, np.float32)
            source = source or _name_of(table)
            table = self.dataset(data, allow_unknown=allow_unknown, progress=progress, source=source)
        return predict(self.model, EpochLoader(table, batch_size), progress=progress)

    def score_candidates(self, user_table: Any, items: Any, candidate_offsets: Any = None) -> np.ndarray:
        """Return the click probability of each candidate of each user.

        What depends on a user alone, above all the states of the history, is computed once a user. Words that
        training did not see and empty histories are fine; ``unknown`` counts such words.

        Args:
            user_table: a row for each user, as a table for :meth:`predict`, or one user as a dict: a value for
                each numeric and categorical feature, and a list of words, or text, for each sequence. What
                describes the candidates need not be there and is not looked at.
            items: the words of the candidate column; where several columns describe a candidate, a table, or a
                dict of columns, with all of them. For several users a list of words for each, or a table with
                such lists in its columns.
            candidate_offsets: instead of lists: ``[U + 1]`` whole numbers; user ``u`` has the items
                ``candidate_offsets[u]`` to ``candidate_offsets[u + 1]``.

        Returns:
            float32 ``[C]``, in the order of the items, user after user: what :meth:`predict` gives for a table in
            which each user's row is repeated for each candidate.

        Raises:
            DataError: if a column is missing or not what the schema says, or users and items do not fit together.

        Example:
            >>> run = dien_fast.load("runs/ml-100k")  # doctest: +SKIP
            >>> run.score_candidates({"histMovieId": [50, 181, 258]}, [1, 7, 121])  # doctest: +SKIP
            array([0.62, 0.41, 0.55], dtype=float32)
        """
        from dien_fast.training.candidates import encode_request

        return self.score_encoded(encode_request(self, user_table, items, candidate_offsets))

    def score_encoded(self, request: Request) -> np.ndarray:
        """Return what :meth:`score_candidates` does, for its encoded arguments; ``unknown`` counts theirs.

        Args:
            request: what :func:`dien_fast.training.candidates.encode_request` returned.
        """
        self._check_process()
        self.unknown.update(request.unknown)
        device = next(self.model.parameters()).device
        user, candidates = (to_device(batch, device) for batch in (request.user, request.candidates))
        states = None if request.states is None else to_device(request.states, device)
        logits = self.model.score_candidates(user, candidates, request.offsets, states=states)
        return logits.float().sigmoid().cpu().numpy()

    @cached_property
    def _scored_schema(self) -> Schema:
        # The negatives serve the auxiliary loss alone; a table to score need not have them.
        return without_negatives(self.schema)

    def _check_process(self) -> None:
        """Raise where a call would wait forever: OpenMP's threads do not come along when a process forks."""
        if os.getpid() != self._process and torch.get_num_threads() > 1:
            raise DienFastError(
                "the run was loaded before this process forked; call torch.set_num_threads(1) here, or start the "
                "process with spawn and load the run in it"
            )

    def dataset(
        self,
        table: Any,
        *,
        require_label: bool = False,
        allow_unknown: bool = False,
        progress: bool = False,
        source: str | None = None,
        part: str = "test",
    ) -> ClickDataset:
        """Return a table as a dataset of this model's inputs, without negatives.

        Args:
            table: as in :meth:`predict`, or the directory of data that were prepared for this model.
            require_label: whether the table must have labels; without them there are no metrics.
            allow_unknown: take the rows even if the model knows nearly no word of a column.
            progress: show a progress bar on stderr.
            source: what error messages call the table; by default its path.
            part: of prepared data, which part: "train", "valid" or "test".

        Returns:
            The dataset; its ``unknown`` says how many words of each column the model does not know.

        Raises:
            DataError: if a column is missing or not what the schema says, or the model cannot read its words.
        """
        from dien_fast.data import ClickDataset, read_table
        from dien_fast.data.inspection import check_words_known
        from dien_fast.data.prepared.manifest import is_prepared

        if isinstance(table, str | Path) and is_prepared(table):
            return self._prepared_rows(table, part, require_label)
        if source is None:
            source = _name_of(table)
        schema = self._scored_schema
        data = read_table(table, schema)
        columns = [*schema.numeric, *schema.categorical, *schema.sequences]
        with steps(len(columns) + schema.timed_groups(), "encoding", progress):
            dataset = ClickDataset(data, schema, self.encoders, require_label=require_label, source=source)
        if not allow_unknown:
            check_words_known(data, schema, self.encoders, dataset.unknown, source)
        return dataset

    def _prepared_rows(self, directory: str | Path, part: str, require_label: bool) -> ClickDataset:
        """Return a part of prepared data, if its words have the ids that this model knows."""
        from dien_fast.data import PreparedData

        data, schema = PreparedData(directory), without_negatives(self.schema)
        known = {*self.encoders} <= {*data.encoders}
        if not known or data.encoders_of(self.schema).fingerprint() != self.encoders.fingerprint():
            raise DataError(
                f"{directory} was not prepared for the run {self.directory}: the same words have other ids there"
            )
        times = {group.name: (group.time, group.session_gap) for group in data.schema.groups}
        for group in schema.groups:
            if group.time and times.get(group.name) != (group.time, group.session_gap):
                raise DataError(f"{directory} was prepared with other sessions than the run {self.directory} has")
        return data.dataset(part, schema, require_label=require_label)


def _name_of(table: Any) -> str:
    return str(table) if isinstance(table, str | Path) else "table"


def load(path: str | Path, device: str | torch.device = "cpu") -> Run:
    """Open a run directory with the weights of its best epoch.

    Args:
        path: the directory that ``dien-fast train`` wrote.
        device: where to put the model.

    Returns:
        The run; its model is in eval mode.

    Raises:
        CheckpointError: if the directory is no run, or a file in it is missing, damaged or does not fit.

    Example:
        >>> dien_fast.load("runs/ml-100k").predict("new.parquet")  # doctest: +SKIP
        array([0.31, 0.87], dtype=float32)
    """
    directory = Path(path)
    config = load_config(directory)
    from dien_fast.data import Encoders

    try:
        schema = config.click_schema
        best = load_checkpoint(directory / "best.pt", ("model", "fingerprint", "identity"))
        difference = first_difference(best["identity"], config.identity())
        if difference:
            raise CheckpointError(
                f"{directory / 'config.json'} was changed after training: "
                f"{directory / 'best.pt'} was trained with {difference}"
            )
        encoders = Encoders.load(directory / "encoders")
        with torch.device("meta"):
            # Sizes alone: the file's weights say whether to take memory for the model.
            sizes = build_model(config, encoders)
    except DataError as error:
        raise CheckpointError(f"the run {directory} is damaged: {error}") from error
    if best["fingerprint"] != encoders.fingerprint():
        raise CheckpointError(
            f"the encoders in {directory / 'encoders'} do not fit {directory / 'best.pt'}: "
            "they were fitted to other data"
        )
    weights = best["model"]
    if "tables" in best:
        from dien_fast.training.sharded.files import read_tables

        weights = weights | read_tables(sizes, path_inside(directory, str(best["tables"]), CheckpointError))
    check_weights(sizes, weights, directory / "best.pt")
    model = build_model(config, encoders)
    load_weights(model, weights, directory / "best.pt")
    model.to(device).eval()
    return Run(directory=directory, config=config, schema=schema, encoders=encoders, model=model)


def load_config(directory: str | Path) -> RunConfig:
    """Return the configuration of the run in ``directory``.

    Raises:
        CheckpointError: if there is no such directory or it is not a run.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"there is no run directory {directory}")
    finish_replacement(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is not a run directory: it has no config.json")
    return RunConfig.load(directory / "config.json")


def prepare_directory(run: RunDirectory, config: RunConfig, encoders: Encoders, *, resume: bool = False) -> None:
    """Make ``run`` ready for :func:`dien_fast.training.fit`: go on with the run that is there, or begin a new one.

    A new run gets ``config.json`` and ``encoders/``. The run that it is to replace stays as it is until
    the new one has a checkpoint.

    Raises:
        CheckpointError: if the run to resume had other settings, or its checkpoints are missing or damaged.
    """
    if resume:
        RunConfig.load(run.path / "config.json").check_same(config, run.path)
        # Before anything is written: a damaged run stays as it is.
        last = load_checkpoint(run.path / "last.pt", STATE_ENTRIES)
        if last["history"]:
            load_checkpoint(run.path / "best.pt")
        run.resume()
        # They are those of the run, by their fingerprint; what is damaged is mended.
        encoders.save(run.place / "encoders")
    else:
        if (run.path / "config.json").exists():
            # Another program's config.json is not overwritten.
            RunConfig.load(run.path / "config.json")
        run.begin()
        encoders.save(run.place / "encoders")
    config.save(run.place / "config.json")


def schema_for(model: str, schema: Schema) -> Schema:
    """Return the schema without what a model does not read: negatives, and the times of events.

    Args:
        model: a name in ``dien_fast.models.MODELS``.
        schema: what a table's columns mean.

    Raises:
        DataError: if the model needs the times of events, and a group has none.
    """
    kind = MODELS[model]
    if not kind.uses_negatives:
        schema = without_negatives(schema)
    if not kind.uses_sessions:
        return without_times(schema)
    for group in schema.groups:
        if not group.time:
            raise DataError(
                f"{model} reads sessions, so group {group.name!r} of the schema must name a column with the times "
                'of its events, such as time = "past_times"'
            )
    return schema


def without_times(schema: Schema) -> Schema:
    """Return the schema of a model that does not read sessions."""
    from dien_fast.data import Group

    return replace(schema, groups=[Group(group.name, group.pairs) for group in schema.groups])


def without_negatives(schema: Schema) -> Schema:
    """Return the schema of a model without the auxiliary loss."""
    from dien_fast.data import Schema

    settings = schema.to_dict() | {"negatives": "none"}
    gone = set(schema.negative_features())
    settings["embedding_sizes"] = {
        feature: size for feature, size in schema.embedding_sizes.items() if feature not in gone
    }
    return Schema.from_dict(settings)
