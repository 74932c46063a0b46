"""Settings of a training: the default, the help text and the check of each stand here, once.

:func:`dien_fast.training.fit` takes :class:`TrainSettings`, a run stores them in its configuration, and the
command makes its options from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

from dien_fast.errors import DienFastError

T = TypeVar("T", bound="TrainSettings")

# Keyword arguments of `fit` that are called otherwise here.
_OTHER_NAMES = {"gradient_accumulation_steps": "gradient_accumulation"}


@dataclass(frozen=True)
class Rule:
    """What a setting means, and which values it may have.

    Attributes:
        help: what it is, as the command's help says it.
        least: the smallest number allowed; of a list, the smallest of its numbers.
        below: numbers must be smaller than this.
        choices: the words allowed.
        option: whether the command has an option for it.
        free: whether it may change when a run is resumed.
    """

    help: str
    least: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    option: bool = True
    free: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise DienFastError, naming the setting, if ``value`` is not allowed."""
        if self.choices and value not in self.choices:
            raise DienFastError(f"{name} must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(value, list):
            if not value or not all(isinstance(item, int) and item >= self.least for item in value):
                raise DienFastError(f"{name} must be whole numbers of at least {self.least:g}, got {value!r}")
        elif not isinstance(value, str) and not self.least <= value < self.below:
            if self.below < math.inf:
                raise DienFastError(f"{name} must lie in [{self.least:g}, {self.below:g}), got {value}")
            number = "" if isinstance(value, int) else "a finite number of "
            raise DienFastError(f"{name} must be {number}at least {self.least:g}, got {value}")


@dataclass
class Settings:
    """A dataclass that checks the types of its fields and, where they are annotated with one, the :class:`Rule`.

    Raises:
        DienFastError: naming the first field with a value that is not allowed.

    Example:
        >>> @dataclass
        ... class Bakery(Settings):
        ...     loaves: Annotated[int, Rule("loaves to bake", least=1)] = 3
        >>> Bakery(loaves=0)
        Traceback (most recent call last):
        dien_fast.errors.DienFastError: loaves must be at least 1, got 0
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            wanted = (int, float) if kind is float else get_origin(kind) or kind
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise DienFastError(f"{name} must be of type {kind}, got {value!r}")
        for name, rule in rules(type(self)).items():
            rule.check(name, getattr(self, name))


def rules(kind: type[Settings]) -> dict[str, Rule]:
    """Return the rule of each field of a class that has one, by name."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, Rule] = {}
    for item in fields(kind):
        for extra in getattr(hints[item.name], "__metadata__", ()):
            if isinstance(extra, Rule):
                found[item.name] = extra
    return found


def default_of(kind: type, name: str) -> Any:
    """Return the default value of a field of a dataclass that has a plain one."""
    return {item.name: item.default for item in fields(kind)}[name]


@dataclass
class TrainSettings(Settings):
    """What :func:`dien_fast.training.fit` needs to know beside the model and its batches.

    Attributes:
        epochs: the most epochs to train.
        patience: stop after so many epochs without a better validation AUC.
        lr: Adam's step size.
        weight_decay: Adam's L2 penalty.
        aux_weight: weight of the auxiliary loss in the training loss.
        seed: the seed of dropout; a run also seeds initial weights, negatives and shuffling with it.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation: batches to an optimizer step.

    Example:
        >>> TrainSettings(epochs=2).lr
        0.002
    """

    epochs: Annotated[int, Rule("most epochs", least=1, free=True)] = 20
    patience: Annotated[int, Rule("stop after N epochs without a better validation AUC", least=1, free=True)] = 3
    lr: Annotated[float, Rule("Adam's step size", least=0)] = 2e-3
    weight_decay: Annotated[float, Rule("Adam's L2 penalty", least=0)] = 1e-3
    aux_weight: Annotated[float, Rule("weight of the auxiliary loss", least=0)] = 1.0
    seed: Annotated[int, Rule("seed of all random numbers", least=0)] = 0
    mixed_precision: Annotated[str, Rule("train with 16-bit arithmetic", choices=("no", "bf16", "fp16"))] = "no"
    gradient_accumulation: Annotated[int, Rule("batches to a step", least=1)] = 1


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """Return the settings with some of them replaced; ``gradient_accumulation_steps`` is another name.

    Raises:
        TypeError: for a name that is none of theirs.
    """
    named = {_OTHER_NAMES.get(name, name): value for name, value in changes.items()}
    known = rules(type(settings))
    for name in named:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}; the settings are {', '.join(known)}")
    return replace(settings, **named)
