"""Finds the plan for a class."""

from __future__ import annotations

from dien_fast.patches.libraries import (
    article_listing,
    deepctr_torch,
    fuxictr,
    prediction_flow,
    recbole,
    torch_rechub,
)
from dien_fast.patches.library import Library, Planner
from dien_fast.patches.probe import RefusedError

LIBRARIES: dict[str, Library] = {
    file.LIBRARY.name: file.LIBRARY for file in (deepctr_torch, recbole, fuxictr, prediction_flow, torch_rechub)
}


def library_of(cls: type) -> Library | None:
    """Return the library that a class comes from, by its top-level package."""
    root = cls.__module__.partition(".")[0]
    return next((library for library in LIBRARIES.values() if root in library.roots), None)


def plan_of(cls: type) -> Planner | None:
    """Return how to plan modules of a class.

    Returns:
        The plan, or None if neither the class nor a base of it is known.

    Raises:
        RefusedError: if the class is of another version than the known one, or a subclass of a known one.
    """
    library = library_of(cls)
    known = _copied(cls) if library is None else library.parts.get((cls.__module__, cls.__qualname__))
    if known is not None:
        if library is not None:
            library.check_version()
        return known
    for base in cls.__mro__[1:]:
        origin = library_of(base)
        if origin is not None and (base.__module__, base.__qualname__) in origin.parts:
            raise RefusedError(
                f"a subclass of {origin.name}'s {base.__qualname__}, which may compute something else"
            )
        if origin is None and base.__name__ in article_listing.COPIES and not _is_ours(base):
            raise RefusedError(
                f"a subclass of {base.__module__}.{base.__qualname__}, which may compute something else"
            )
    return None


def _copied(cls: type) -> Planner | None:
    """Return the plan for a class of no library, which may be somebody's copy of a known one."""
    if _is_ours(cls) and not cls.__module__.startswith("dien_fast.reference"):
        return None
    libraries = (library.copies.get(cls.__name__) for library in LIBRARIES.values())
    return article_listing.COPIES.get(cls.__name__) or next(filter(None, libraries), None)


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("dien_fast.")


def looked_for() -> str:
    """Say in one sentence which classes are known."""
    known = [
        f"{library.name} {' or '.join(library.versions)} ({', '.join(name for _, name in library.parts)})"
        for library in LIBRARIES.values()
    ]
    names = ", ".join(article_listing.COPIES)
    return f"{'; '.join(known)}; and classes named {names} with the structure of DIEN's listing"
