"""Makes a module fast by giving it another class, and back: nothing else about the module changes."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any, ClassVar, NamedTuple

from torch import nn


class Recipe(NamedTuple):
    """How a class was made fast, and all that a pickle needs to make it again.

    Attributes:
        mixin: what was put before the original class.
        original: the class, as it was.
        details: what the mixin needs to know about this one, constant and hashable.
    """

    mixin: type[Accelerated]
    original: type[nn.Module]
    details: Any


class Accelerated(nn.Module):
    """Base of the mixins. A module whose class has one is fast, and ``__class__`` is all that was set on it."""

    _dien_fast: ClassVar[Recipe]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class exists in no module, so that copies and pickles are told how to make it again.
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_rebuild, tuple(self._dien_fast), *reduced[2:])


_classes: dict[Hashable, Any] = {}


def fast_class(mixin: type[Accelerated], original: type[nn.Module], details: Any) -> type[Accelerated]:
    """Return the subclass of ``original`` that a mixin makes of it, always the same one."""
    recipe = Recipe(mixin, original, details)
    if recipe not in _classes:
        # The name is the original's, as code may ask for it; in its text form the module looks as before.
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
    """Make a module fast."""
    module.__class__ = fast_class(*recipe)


def swap_back(module: nn.Module) -> bool:
    """Give a module its own class again; whether it had another."""
    if not isinstance(module, Accelerated):
        return False
    if type(module) is not _classes.get(module._dien_fast):
        # As parametrizations and FSDP do; what they put on top would be lost.
        warnings.warn(
            f"dien_fast cannot restore a {type(module).__name__} whose class was changed again since",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    module.__class__ = module._dien_fast.original  # type: ignore[assignment]
    return True
