"""Makes a module fast by giving it another class, and restores it; nothing else about the module changes."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any, ClassVar, NamedTuple

from torch import nn


class Recipe(NamedTuple):
    """How the class of a fast module is made; a pickle of the module holds this and makes the class again.

    Attributes:
        mixin: the class whose ``forward`` replaces the original's; the first base of the fast class.
        original: the module's own class; the second base.
        details: constants of the mixin for this module, such as the rule of its cell; hashable.
    """

    mixin: type[Accelerated]
    original: type[nn.Module]
    details: Any


class Accelerated(nn.Module):
    """Base of the mixins: a module is fast if it is an instance of this."""

    _dien_fast: ClassVar[Recipe]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # No module has the class under a name, so copies and pickles store the recipe instead.
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_rebuild, tuple(self._dien_fast), *reduced[2:])


_classes: dict[Hashable, Any] = {}


def fast_class(mixin: type[Accelerated], original: type[nn.Module], details: Any) -> type[Accelerated]:
    """Return the subclass of a mixin and ``original``; the same arguments always give the same class."""
    recipe = Recipe(mixin, original, details)
    if recipe not in _classes:
        # The name is the original's: printed models look as before, and code that asks for the name works.
        namespace = {
            "_dien_fast": recipe,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
        }
        made: Any = type(original.__name__, (mixin, original), namespace)
        _classes[recipe] = made
    found: type[Accelerated] = _classes[recipe]
    return found


def _rebuild(mixin: type[Accelerated], original: type[nn.Module], details: Any) -> Accelerated:
    cls = fast_class(mixin, original, details)
    return cls.__new__(cls)


def swap(module: nn.Module, recipe: Recipe) -> None:
    """Give a module the fast class that a recipe makes."""
    module.__class__ = fast_class(*recipe)


def swap_back(module: nn.Module) -> bool:
    """Give a module its own class again; return whether it was changed."""
    if not isinstance(module, Accelerated):
        return False
    if type(module) is not _classes.get(module._dien_fast):
        # Parametrizations and FSDP set a class of their own on top of ours, which would be lost.
        warnings.warn(
            f"dien_fast cannot restore a {type(module).__name__} whose class was changed again since",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    module.__class__ = module._dien_fast.original  # type: ignore[assignment]
    return True
