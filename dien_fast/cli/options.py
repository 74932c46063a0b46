"""What the commands' options have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from dien_fast.errors import one_sentence
from dien_fast.lines import visible
from dien_fast.models import MODELS
from dien_fast.settings import Settings, rules


class Parser(argparse.ArgumentParser):
    """A parser whose messages show all characters: a pattern of the shell adds names of files to a command."""

    def error(self, message: str) -> NoReturn:
        """Print a message and end the process with status 2."""
        super().error(one_sentence(visible(message)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read words, and refuse ``--option --``, of which argparse makes an empty list."""
        found, more = super().parse_known_args(args, namespace)
        for action in self._actions:
            if action.nargs is None and getattr(found, action.dest, None) == []:
                self.error(f"argument {'/'.join(action.option_strings) or action.metavar}: expected one argument")
        return found, more


def add_settings(group: argparse._ArgumentGroup, kind: type[Settings], names: Iterable[str]) -> None:
    """Add an option for each of the named settings of ``kind``, with its help text and its default.

    The option of ``batch_size`` is ``--batch-size``. Ranges are checked where the settings are made.

    Args:
        group: where the options go.
        kind: a class of settings.
        names: of its fields; those without an option are left out.
    """
    defaults, described = kind(), rules(kind)
    for name in names:
        rule, default = described[name], getattr(defaults, name)
        if rule.option:
            group.add_argument(
                "--" + name.replace("_", "-"),
                help=with_default(rule.help, default),
                **({"choices": rule.choices} if rule.choices else _reader(default)),
            )


def model_options() -> dict[str, list[str]]:
    """Return each option that belongs to some models alone, with the names of these models."""
    owners: dict[str, list[str]] = {}
    for model, kind in MODELS.items():
        for name in rules(kind.options):
            owners.setdefault(name, []).append(model)
    return owners


def with_default(help: str, default: Any) -> str:
    """Return a help text that ends with the default; that of a switch, which is off by default, does not.

    Example:
        >>> with_default("hidden layers", [16, 8])
        'hidden layers (default: 16,8)'
    """
    if isinstance(default, bool):
        return help
    if isinstance(default, list):
        shown = ",".join(map(str, default))
    else:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{help} (default: {shown})"


def _reader(default: Any) -> dict[str, Any]:
    """Return how argparse reads values like ``default``, and what it calls them."""
    if isinstance(default, bool):
        return {"action": "store_true"}
    if isinstance(default, list):
        return {"type": sizes, "metavar": "N,N"}
    if isinstance(default, str):
        return {"metavar": "TEXT"}
    if isinstance(default, float):
        return {"type": float, "metavar": "X"}
    return {"type": int, "metavar": "N"}


def sizes(text: str) -> list[int]:
    """Read whole numbers between commas."""
    return [int(word) for word in text.split(",")]


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


# argparse names the type in its message.
count.__name__ = "number"
sizes.__name__ = "list of sizes"
