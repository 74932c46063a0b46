"""What a patch file says about its library."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from dien_fast.patches.probe import RefusedError
from dien_fast.patches.recurrence import packed_gru
from dien_fast.patches.swap import Accelerated, Recipe


class Change(NamedTuple):
    """A module that can be made fast.

    Attributes:
        module: the module.
        recipe: its new class.
        what: what becomes of it, for the report.
    """

    module: nn.Module
    recipe: Recipe
    what: str


class Plan(NamedTuple):
    """What to do with a module of a known class.

    Attributes:
        changes: modules to make fast.
        left: sentences on what stays as it is.
        whole: when the changes are made, plans the module itself, or raises RefusedError.
    """

    changes: list[Change]
    left: list[str]
    whole: Callable[[], Change] | None = None


class Library(NamedTuple):
    """A library whose classes are known.

    Attributes:
        name: as :func:`dien_fast.accelerate` takes it.
        distribution: its name on PyPI.
        versions: the versions that the patches were compared with.
        roots: its top-level packages.
        parts: by module and name, the classes that are made fast and how; a plan raises RefusedError to leave one.
    """

    name: str
    distribution: str
    versions: tuple[str, ...]
    roots: tuple[str, ...]
    parts: dict[tuple[str, str], Callable[[Any], Plan]]

    def check_version(self) -> None:
        """Raise RefusedError unless a version that the patches were compared with is installed."""
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
    """Raise RefusedError unless methods of a class have the source that they were replaced for.

    For a whole model, of which no copy can be run: its tables may be too large for a second one.

    Args:
        cls: the class.
        digests: of each the first 16 digits of the SHA-256 of its source, stripped.
    """
    for name, digest in digests.items():
        try:
            source = inspect.getsource(cls.__dict__[name]).strip()
        except (KeyError, OSError, TypeError):
            source = ""
        if hashlib.sha256(source.encode()).hexdigest()[:16] != digest:
            raise RefusedError(f"as a whole, because its {name} is not the one that is known")


def gru_changes(owner: nn.Module, *names: str) -> Plan:
    """Plan the nn.GRU that a known class holds; ``names`` may reach into lists, as ``"grus.0"``."""
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
