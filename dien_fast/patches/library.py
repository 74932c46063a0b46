"""What a file in ``libraries/`` consists of: the types that it fills in, and plans that several libraries share.

A plan is a function of a module. It looks at the module, compares copies where that is needed, and returns the
changes to make; it raises :class:`~dien_fast.patches.probe.RefusedError` to leave the module as it is.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from dien_fast.patches.probe import RefusedError
from dien_fast.patches.recurrence import packed_gru, packed_loop
from dien_fast.patches.swap import Accelerated, Recipe


class Change(NamedTuple):
    """A module to make fast.

    Attributes:
        module: the module.
        recipe: how its new class is made.
        what: what it does from now on, for the report.
    """

    module: nn.Module
    recipe: Recipe
    what: str


class Plan(NamedTuple):
    """What to do with a module of a known class.

    Attributes:
        changes: modules to make fast first: the parts of the module, or the module itself.
        left: for each part that stays as it is, a sentence that says why.
        whole: called after the changes are made; plans the module itself, or raises RefusedError.
    """

    changes: list[Change]
    left: list[str]
    whole: Callable[[], Change] | None = None


Planner = Callable[[Any], Plan]


class Library(NamedTuple):
    """A library whose classes are known.

    Attributes:
        name: as :func:`dien_fast.accelerate` takes it.
        distribution: its name on PyPI.
        versions: the versions that the fast modules were compared with.
        roots: its top-level packages.
        parts: the plan for each known class, by the class's module and name.
        copies: the plan for each class that people copy into their own modules, by the class's name alone. Such
            a plan finds out whether the class is a copy; if it is not, it returns an empty plan.
    """

    name: str
    distribution: str
    versions: tuple[str, ...]
    roots: tuple[str, ...]
    parts: Mapping[tuple[str, str], Planner]
    copies: Mapping[str, Planner] = {}

    def check_version(self) -> None:
        """Raise RefusedError unless one of ``versions`` is installed."""
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "a copy without a version"
        if version not in self.versions:
            raise RefusedError(f"{self.distribution} must be {' or '.join(self.versions)}, found {version}")

    def classes(self) -> list[type[nn.Module]]:
        """Import the library and return the classes of ``parts``."""
        return [getattr(importlib.import_module(module), name) for module, name in self.parts]


def check_source(cls: type[nn.Module], **digests: str) -> None:
    """Raise RefusedError unless methods of a class have exactly the source that their replacement was written for.

    For a whole model, whose embedding tables may be too large to run a copy of it.

    Args:
        cls: the class.
        digests: for each method, the first 16 digits of the SHA-256 of its source without the white space around
            it.
    """
    for name, digest in digests.items():
        try:
            source = inspect.getsource(cls.__dict__[name]).strip()
        except (KeyError, OSError, TypeError):
            source = ""
        if hashlib.sha256(source.encode()).hexdigest()[:16] != digest:
            raise RefusedError(f"as a whole, because its {name} is not the one that is known")


def gru_changes(owner: nn.Module, *names: str) -> Plan:
    """Plan the nn.GRU that a module holds under each of ``names``, such as ``"gru"`` or ``"grus.0"``."""
    plan = Plan([], [])
    for name in names:
        module = owner.get_submodule(name)
        if isinstance(module, Accelerated):
            continue
        try:
            plan.changes.append(
                Change(module, packed_gru(module), "nn.GRU over packed batches through the kernel")
            )
        except RefusedError as why:
            plan.left.append(f"{name}: {why}")
    return plan


def dynamic_gru(module: Any) -> Plan:
    """Plan a DynamicGRU: its cell is in ``rnn``, or in ``gru_cell`` if it returns the last states too."""
    returns_last = hasattr(module, "gru_cell")
    recipe = packed_loop(module, "gru_cell" if returns_last else "rnn", returns_last)
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])
