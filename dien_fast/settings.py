"""Settings: dataclasses whose fields say what they mean and which values they may have.

The command makes its options from them, so that a default, a help text and a check stand once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, get_origin, get_type_hints

from dien_fast.errors import DienFastError

# Whole numbers of 64 bits end here, and with them what torch and NumPy take.
_MOST = 2**63


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
        late: whether runs of earlier versions lack it; they did what its default says.
    """

    help: str
    least: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    option: bool = True
    free: bool = False
    late: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise DienFastError, naming the setting, if ``value`` is not allowed."""
        if self.choices and value not in self.choices:
            raise DienFastError(f"{name} must be one of {', '.join(self.choices)}, got {value!r}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not -_MOST <= number < _MOST:
                raise DienFastError(
                    f"{name} must be a number of at most 64 bits, got one of {number.bit_length() + 1}"
                )
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
        >>> from dien_fast.models.dien import DIENOptions
        >>> DIENOptions(gru_type="LSTM")
        Traceback (most recent call last):
        dien_fast.errors.DienFastError: gru_type must be one of AUGRU, AGRU, AIGRU, GRU, got 'LSTM'
    """

    def __post_init__(self) -> None:
        for name, (kind, rule) in _described(type(self)).items():
            value = getattr(self, name)
            wanted = (int, float) if kind is float else get_origin(kind) or kind
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, wanted):
                raise DienFastError(f"{name} must be of type {kind}, got {value!r}")
            if rule is not None:
                rule.check(name, value)


def rules(kind: type[Settings]) -> dict[str, Rule]:
    """Return the rule of each field of a class that has one, by name."""
    return {name: rule for name, (_, rule) in _described(kind).items() if rule is not None}


# By class, as Python evaluates annotations anew whenever it is asked for them, which takes milliseconds.
_DESCRIBED: dict[type, dict[str, tuple[Any, Rule | None]]] = {}


def _described(kind: type[Settings]) -> dict[str, tuple[Any, Rule | None]]:
    """Return the type of each field of a class and its rule, if it has one, by name."""
    if kind not in _DESCRIBED:
        plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        found: dict[str, tuple[Any, Rule | None]] = {}
        for item in fields(kind):
            extras = getattr(annotated[item.name], "__metadata__", ())
            found[item.name] = plain[item.name], next((rule for rule in extras if isinstance(rule, Rule)), None)
        _DESCRIBED[kind] = found
    return _DESCRIBED[kind]


def default_of(kind: type, name: str) -> Any:
    """Return the default value of a field of a dataclass that has a plain one."""
    return {item.name: item.default for item in fields(kind)}[name]
