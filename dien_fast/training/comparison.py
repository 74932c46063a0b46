"""Comparisons of models and settings over several seeds: which trainings they need, and what came out.

A comparison directory holds a run directory for each training, and

compare.json    the command's options
results.csv     a row for each finished training: its metrics and how long it took
table.csv       a row for each variant: means, standard deviations, differences
table.md        the same to read; table.png draws it
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dien_fast.errors import DienFastError
from dien_fast.models import MODELS
from dien_fast.settings import rules

if TYPE_CHECKING:
    import pandas as pd

# Settings that concern a model only if it has the auxiliary loss.
_OF_THE_AUXILIARY_LOSS = ("negatives", "aux_weight", "exclude_clicked")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Variant:
    """A model with the settings that distinguish it from others.

    Attributes:
        model: its name in ``dien_fast.models.MODELS``.
        settings: name and value of each, as the options of ``dien-fast train``.

    Example:
        >>> variant = Variant("dien", (("gru_type", "AGRU"), ("negatives", "none")))
        >>> variant.name, variant.slug
        ('DIEN, gru_type AGRU, negatives none', 'dien-gru_type=AGRU-negatives=none')
    """

    model: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return ", ".join([MODELS[self.model].__name__, *(f"{name} {value}" for name, value in self.settings)])

    @property
    def slug(self) -> str:
        """Its part of a path."""
        return "-".join([self.model, *(f"{name}={value}" for name, value in self.settings)])

    def options(self) -> list[str]:
        """Return the options of ``dien-fast train`` that choose it."""
        return options([("model", self.model), *self.settings])


def options(settings: Iterable[tuple[str, str]]) -> list[str]:
    """Return settings as options of ``dien-fast train``: flags are true or false, sizes have a plus between them.

    Example:
        >>> options([("mlp_hidden", "32+16"), ("exclude_clicked", "true"), ("separate_embeddings", "false")])
        ['--mlp-hidden', '32,16', '--exclude-clicked']
    """
    words = []
    for name, value in settings:
        option = "--" + name.replace("_", "-")
        if value == "true":
            words.append(option)
        elif value != "false":
            words += [option, value.replace("+", ",")]
    return words


def variants(models: Sequence[str], vary: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Return each model with every combination of the settings that concern it, each once.

    Args:
        models: names in ``dien_fast.models.MODELS``.
        vary: the values of each setting, by its name.

    Raises:
        DienFastError: an unknown model, or a setting that concerns none of the models.

    Example:
        >>> [variant.slug for variant in variants(["din", "dien"], {"gru_type": ["AGRU", "GRU"]})]
        ['din', 'dien-gru_type=AGRU', 'dien-gru_type=GRU']
    """
    for model in models:
        if model not in MODELS:
            raise DienFastError(f"models must be among {', '.join(MODELS)}, got {model!r}")
    for name in vary:
        if not any(_concerns(name, model) for model in models):
            raise DienFastError(f"{name} is no setting of {', '.join(models)}")
    found: dict[Variant, None] = {}
    for model in models:
        own = {name: values for name, values in vary.items() if _concerns(name, model)}
        for values in itertools.product(*own.values()):
            found[Variant(model, tuple(zip(own, values, strict=True)))] = None
    return list(found)


def _concerns(name: str, model: str) -> bool:
    if name in _OF_THE_AUXILIARY_LOSS:
        return MODELS[model].uses_negatives
    owners = [other for other, kind in MODELS.items() if name in rules(kind.options)]
    return not owners or model in owners


def summary(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return a row for each variant: the mean test metrics over the seeds and how they differ from the baseline's.

    Args:
        results: a row for each training, with variant, seed, test_auc, test_gauc, test_logloss, epochs,
            epoch_seconds.
        baseline: name of the variant that the others are compared with.

    Returns:
        variant; seeds; auc and auc_std (of one seed, NaN); gauc; logloss; difference: the mean difference in AUC
        from the baseline with the same seed; low and high: its 95 % interval by Student's t (NaN where there are
        not two common seeds); improvement: the relative improvement in percent, (AUC - 0.5) / (baseline's AUC -
        0.5) - 1, over the common seeds (RelaImpr of the DIN paper, arXiv 1706.06978); epochs; epoch_seconds.

    Example:
        >>> import pandas as pd
        >>> results = pd.DataFrame({"variant": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "test_auc": [0.7, 0.8,
        ...     0.72, 0.84], "test_gauc": 0.6, "test_logloss": 0.5, "epochs": 3, "epoch_seconds": 2.0})
        >>> summary(results, "a")[["variant", "auc", "difference", "improvement"]].round(3).to_dict("records")[1]
        {'variant': 'b', 'auc': 0.78, 'difference': 0.03, 'improvement': 12.0}
    """
    import pandas as pd

    reference = results[results["variant"] == baseline].set_index("seed")["test_auc"]
    rows = []
    for name in results["variant"].unique():
        own = results[results["variant"] == name].set_index("seed")
        common = own.index.intersection(reference.index)
        difference = (own["test_auc"][common] - reference[common]).to_numpy()
        low, high = interval(difference) if name != baseline else (float("nan"), float("nan"))
        gained, before = own["test_auc"][common].mean() - 0.5, reference[common].mean() - 0.5
        rows.append(
            {
                "variant": name,
                "seeds": len(own),
                "auc": own["test_auc"].mean(),
                "auc_std": own["test_auc"].std(),
                "gauc": own["test_gauc"].mean(),
                "logloss": own["test_logloss"].mean(),
                "difference": difference.mean() if len(common) else float("nan"),
                "low": low,
                "high": high,
                "improvement": 100 * (gained / before - 1) if len(common) else float("nan"),
                "epochs": own["epochs"].mean(),
                "epoch_seconds": own["epoch_seconds"].median(),
            }
        )
    return pd.DataFrame(rows)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of paired differences ``[N]``, by Student's t.

    Example:
        >>> [round(bound, 4) for bound in interval(np.array([0.01, 0.02, 0.03]))]
        [-0.0048, 0.0448]
    """
    from scipy import stats

    count = len(differences)
    if count < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return float(differences.mean() - half), float(differences.mean() + half)


def markdown(table: pd.DataFrame) -> str:
    """Return a summary as a Markdown table.

    Args:
        table: from :func:`summary`.
    """
    lines = ["| | test AUC | difference (95 % interval) | improvement | GAUC | log loss | epochs | s an epoch |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in table.to_dict("records"):
        spread = "" if np.isnan(row["auc_std"]) else f" ± {row['auc_std']:.4f}"
        cells = [
            row["variant"],
            f"{row['auc']:.4f}{spread}",
            _difference(row),
            f"{_signed(row['improvement'], 1)} %",
        ]
        cells += [
            f"{row['gauc']:.4f}",
            f"{row['logloss']:.4f}",
            f"{row['epochs']:.1f}",
            f"{row['epoch_seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(row: Mapping[str, Any]) -> str:
    if np.isnan(row["low"]):
        return _signed(row["difference"], 4)
    return f"{_signed(row['difference'], 4)} ({_signed(row['low'], 4)} to {_signed(row['high'], 4)})"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # adding makes +0.0 of -0.0


def result_of(directory: Path) -> dict[str, float]:
    """Return what ``results.csv`` holds of a finished run."""
    import pandas as pd

    from dien_fast.training.config import read_json

    metrics = read_json(directory / "metrics.json")
    seconds = pd.read_csv(directory / "history.csv")["seconds"]
    # The first epoch also warms caches up.
    typical = seconds[1:] if len(seconds) > 1 else seconds
    found = {name: float("nan") if value is None else value for name, value in metrics.items()}
    return found | {"epoch_seconds": float(typical.median())}
