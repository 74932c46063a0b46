"""The configuration of a run: everything that decides its outcome, as ``config.json`` stores it."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch

from dien_fast._version import __version__
from dien_fast.errors import CheckpointError, DienFastError
from dien_fast.files import parse_json, write_atomically
from dien_fast.models import MODELS
from dien_fast.settings import Rule, rules
from dien_fast.training.checkpoints import first_difference
from dien_fast.training.settings import TrainSettings

if TYPE_CHECKING:
    from dien_fast.data.schema import Schema

# Entries that say nothing about what the weights mean; neither do the settings of training.
_NOT_OF_THE_MODEL = ("data", "batch_size", "fingerprint", "versions", *rules(TrainSettings))


def _versions() -> dict[str, str]:
    return {"dien-fast": __version__, "torch": torch.__version__, "python": platform.python_version()}


@dataclass
class RunConfig(TrainSettings):
    """Everything that decides a run's outcome, as stored in ``config.json``.

    The settings of training are described at :class:`dien_fast.training.TrainSettings`.

    Attributes:
        schema: :meth:`dien_fast.data.Schema.to_dict` of the table's columns.
        data: where the rows came from (see :class:`dien_fast.data.sources.Source`).
        model: a name in ``dien_fast.models.MODELS``.
        options: the settings of that model alone (of DIEN, ``gru_type``); those that are not given have their
            defaults.
        embedding_size: width of an embedding, unless the schema says otherwise for a feature.
        attention_hidden: widths of the attention MLP's hidden layers.
        attention_dropout: its dropout probability.
        mlp_hidden: widths of the last MLP's hidden layers.
        mlp_activation: its activation.
        mlp_dropout: its dropout probability.
        batch_size: rows in a training step.
        fingerprint: identity of the encoders that the weights belong to.
        versions: of dien-fast, torch and Python, for the record.
    """

    schema: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: Annotated[str, Rule("which model", choices=tuple(MODELS))] = next(iter(MODELS))
    options: dict[str, Any] = field(default_factory=dict)
    embedding_size: Annotated[int, Rule("width of an embedding", least=1)] = 16
    attention_hidden: Annotated[list[int], Rule("hidden layers of the attention MLP", least=1)] = field(
        default_factory=lambda: [16, 8]
    )
    attention_dropout: Annotated[float, Rule("its dropout", least=0, below=1)] = 0.1
    mlp_hidden: Annotated[list[int], Rule("hidden layers of the last MLP", least=1)] = field(
        default_factory=lambda: [32, 16]
    )
    mlp_activation: Annotated[str, Rule("its activation", option=False)] = "prelu"
    mlp_dropout: Annotated[float, Rule("its dropout", least=0, below=1)] = 0.25
    # Batch statistics need two rows.
    batch_size: Annotated[int, Rule("rows in a step", least=2)] = 128
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=_versions)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = MODELS[self.model].options
        for name in self.options:
            if name not in rules(kind):
                known = ", ".join(rules(kind)) or "none"
                raise DienFastError(f"options of {self.model} must be among: {known}, got {name!r}")
        self.options = asdict(kind(**self.options))

    @property
    def click_schema(self) -> Schema:
        """The schema as an object."""
        from dien_fast.data import Schema

        return Schema.from_dict(self.schema)

    def save(self, path: str | Path) -> None:
        """Write the configuration as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """Read the configuration that :meth:`save` wrote.

        Raises:
            CheckpointError: if the file is missing or is not such a configuration.
        """
        content = read_json(path)
        names = {item.name for item in fields(cls)}
        # A version that did not know these has written the file.
        needed = names - {name for name, rule in rules(cls).items() if rule.free or rule.late}
        if not isinstance(content, dict) or not needed <= set(content) <= names:
            differs = sorted(names ^ set(content)) if isinstance(content, dict) else []
            hint = f": the setting {differs[0]!r} is missing or unknown" if differs else ""
            raise CheckpointError(f"{path} is not the configuration of a dien-fast run{hint}")
        try:
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not the configuration of a dien-fast run: {error}") from error

    def check_same(self, other: RunConfig, directory: str | Path) -> None:
        """Refuse to resume ``directory``, a run with this configuration, with ``other``.

        Raises:
            CheckpointError: naming the first setting that differs.
        """
        # None of these alters an epoch that has been trained.
        free = {"versions"} | {name for name, rule in rules(type(self)).items() if rule.free}
        old, new = (
            {name: value for name, value in _flat(asdict(config)).items() if name not in free}
            for config in (self, other)
        )
        data = old.pop("fingerprint") == new.pop("fingerprint")
        difference = first_difference(old, new)
        if difference:
            raise CheckpointError(f"{directory} cannot be resumed: it was trained with {difference}")
        if not data:
            raise CheckpointError(
                f"{directory} cannot be resumed: the training rows are not those it was trained on"
            )

    def of_all_processes(self) -> dict[str, Any]:
        """Return, by name, what processes that train as one must have in common: all but where the data are."""
        flat = _flat(asdict(self))
        # The encoders come last: they differ where the seed does.
        encoders = {"encoders": flat.pop("fingerprint")}
        return {name: value for name, value in flat.items() if not name.startswith("data.")} | encoders

    def identity(self) -> dict[str, Any]:
        """Return what the weights belong to, by name: the model's kind and sizes and the columns' meaning."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NOT_OF_THE_MODEL}
        # As config.json gives them back.
        return json.loads(json.dumps(_flat(settings)))


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file, or say in a CheckpointError why there is none."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: it is damaged or not from dien-fast") from error


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, atomically; NaN, which JSON lacks, becomes null."""
    plain = {
        name: None if isinstance(value, float) and np.isnan(value) else value for name, value in content.items()
    }
    with write_atomically(path) as unfinished:
        unfinished.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in order: those of schema and data under dotted names, the model's options by theirs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ("schema", "data"):
            flat |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()}
        elif name == "options":
            flat |= value
        else:
            flat[name] = value
    return flat
