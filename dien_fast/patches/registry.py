"""Finds the patch for a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dien_fast.patches.libraries import deepctr_torch, fuxictr, prediction_flow, recbole, seed, torch_rechub
from dien_fast.patches.library import Library, Plan
from dien_fast.patches.probe import RefusedError

LIBRARIES: dict[str, Library] = {
    patch.LIBRARY.name: patch.LIBRARY for patch in (deepctr_torch, recbole, fuxictr, prediction_flow, torch_rechub)
}

OWN = "dien_fast"


def library_of(cls: type) -> Library | None:
    """Return the library that a class comes from, by its top-level package."""
    root = cls.__module__.partition(".")[0]
    return next((library for library in LIBRARIES.values() if root in library.roots), None)


def plan_of(cls: type) -> Callable[[Any], Plan] | None:
    """Return how to plan modules of a class.

    Returns:
        None for a class that nobody looks for.

    Raises:
        RefusedError: for a class that is nearly one of the known ones: a subclass, another version.
    """
    library = library_of(cls)
    if library is not None:
        plan = library.parts.get((cls.__module__, cls.__qualname__))
        if plan is not None:
            library.check_version()
            return plan
    elif cls.__module__.startswith(f"{OWN}.") and not cls.__module__.startswith(f"{OWN}.reference"):
        return None
    elif cls.__name__ in seed.PARTS:
        return seed.PARTS[cls.__name__]
    elif cls.__name__ in seed.COPIES:
        return seed.COPIES[cls.__name__]
    for base in cls.__mro__[1:]:
        library = library_of(base)
        if library is not None and (base.__module__, base.__qualname__) in library.parts:
            raise RefusedError(
                f"a subclass of {library.name}'s {base.__qualname__}, which may compute something else"
            )
        if library is None and base.__name__ in seed.PARTS and not base.__module__.startswith(f"{OWN}."):
            raise RefusedError(
                f"a subclass of {base.__module__}.{base.__qualname__}, which may compute something else"
            )
    return None


def looked_for() -> str:
    """Say in one sentence what is known."""
    known = [
        f"{library.name} {' or '.join(library.versions)} ({', '.join(name for _, name in library.parts)})"
        for library in LIBRARIES.values()
    ]
    return f"{'; '.join(known)}; and classes named {', '.join(seed.PARTS)} with the structure of DIEN's listing"
