"""Search for settings with Optuna: what is searched, and a study that goes on after an interruption."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dien_fast.errors import DienFastError, one_sentence

if TYPE_CHECKING:
    import optuna

# What is searched without --search: what decides most, with the article's values inside each range.
SPACE = (
    "lr=5e-4:1e-2",
    "weight_decay=1e-6:1e-3",
    "embedding_size=8,16,32",
    "attention_hidden=16+8,36,80+40",
    "mlp_hidden=32+16,64+32,200+80",
    "mlp_dropout=0.0:0.5",
)
# Bounds that far apart are searched on a logarithmic scale.
_LOGARITHMIC = 20


@dataclass(frozen=True)
class Range:
    """The values of a setting: some words, or the numbers between two bounds.

    Attributes:
        name: of the setting.
        choices: words, as on the command line; empty for a range of numbers.
        low, high: the bounds.
        whole: whether the numbers are whole.

    Example:
        >>> Range.parse("lr=1e-4:1e-2")
        Range(name='lr', choices=(), low=0.0001, high=0.01, whole=False)
        >>> Range.parse("gru_type=AGRU,AUGRU").choices
        ('AGRU', 'AUGRU')
    """

    name: str
    choices: tuple[str, ...] = ()
    low: float = math.nan
    high: float = math.nan
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read ``NAME=LOW:HIGH`` or ``NAME=A,B``.

        Raises:
            DienFastError: if it is neither.
        """
        name, equals, values = text.partition("=")
        low, colon, high = values.partition(":")
        try:
            if not (name and equals and values):
                raise ValueError
            name = name.replace("-", "_")
            if not colon:
                return cls(name, tuple(values.split(",")))
            bounds = float(low), float(high)
            if not bounds[0] < bounds[1] < math.inf:
                raise ValueError
        except ValueError:
            raise DienFastError(f"search must be NAME=LOW:HIGH or NAME=A,B, got {text!r}") from None
        return cls(name, (), *bounds, whole=low.strip().isdigit() and high.strip().isdigit())

    def suggest(self, trial: optuna.Trial) -> str:
        """Return a value, as on the command line."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        logarithmic = self.low > 0 and self.high / self.low >= _LOGARITHMIC
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=logarithmic))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=logarithmic))


@contextmanager
def study_errors(path: Path) -> Iterator[None]:
    """Say in one sentence what stands in the way of a study inside the block.

    Args:
        path: of the study's file.

    Raises:
        DienFastError: Optuna is not installed, or the file cannot be read or written.

    Example:
        >>> with study_errors(Path("study.db")):  # doctest: +SKIP
        ...     study = open_study(Path("study.db"), [Range.parse("lr=1e-4:1e-2")])
    """
    try:
        import optuna
        import sqlalchemy.exc
    except ImportError as error:
        raise DienFastError('tuning needs Optuna: pip install "dien-fast[tune]"') from error

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise DienFastError(f"{path}: the study cannot be read or written: {_first_cause(error)}") from error


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that all others of a chain come from: that of SQLite."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def open_study(path: Path, search: Sequence[Range]) -> optuna.Study:
    """Open the study in an SQLite file, or make it; trials that a kill interrupted count as failed.

    Trials are pruned where the validation AUC of an epoch is below the median of the trials before. The first two
    epochs prune none: with many good settings the AUC stays near 0.5 for an epoch.

    Args:
        path: of the file.
        search: what is searched; the same as before, where the study exists.

    Raises:
        DienFastError: the study is damaged, or searches something else.
    """
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    described = [repr(setting) for setting in search]
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path.resolve()}",
            study_name="dien-fast",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
        )
        before = [str(setting) for setting in study.user_attrs.get("search", described)]
        _check_trials(study)
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        raise
    except Exception as error:  # whatever Optuna meets in a damaged file
        raise DienFastError(f"{path}: the study is damaged: {one_sentence(error) or error!r}") from error
    if before != described:
        raise DienFastError(f"{path} searches {'; '.join(before)}; choose another --output")
    study.set_user_attr("search", described)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _check_trials(study: optuna.Study) -> None:
    """Read all that is known of the trials.

    Raises:
        ValueError: a finished one lacks what the end of the search needs.
    """
    import optuna

    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        words = trial.user_attrs.get("options")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"trial {trial.number} has no options")
        if trial.value is None:
            raise ValueError(f"trial {trial.number} has no AUC")


def next_trial(study: optuna.Study, seed: int) -> optuna.Trial:
    """Return a trial whose settings depend on the seed and the finished trials alone, so that it can be repeated.

    They are chosen by the tree-structured Parzen estimator.

    Args:
        study: of :func:`open_study`.
        seed: of the search.
    """
    import optuna

    (number,) = np.random.SeedSequence([seed % 2**64, finished(study)]).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(seed=int(number), multivariate=True)
    return study.ask()


def best_options(study: optuna.Study) -> list[str]:
    """Return the options of the trial with the best validation AUC.

    Raises:
        DienFastError: if no trial was finished.
    """
    try:
        return list(study.best_trial.user_attrs["options"])
    except ValueError:
        raise DienFastError("no trial was finished, so there is no best one") from None


def finished(study: optuna.Study) -> int:
    """Return how many trials have ended, pruned ones too."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def importances(study: optuna.Study) -> dict[str, Any]:
    """Return how much of the variance of the AUC each setting explains, by PED-ANOVA; empty with few trials."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < 10:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
