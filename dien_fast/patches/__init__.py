"""Makes the DIEN of other libraries fast in place, with the same numbers.

How ``accelerate(model)`` works, a module of this package for each step:

1. ``registry`` looks up the class of every module of the model. ``libraries/`` has a file for each library,
   which says what its classes are called and how to plan a change for each of them (``library`` has the types
   and plans they share).
2. ``probe`` finds out what a module computes by running a copy of it in float64 with random weights, forward and
   backward. A cell must agree with one known rule and order of gates, a layer with its fast version. Names prove
   nothing.
3. ``swap`` changes the module's ``__class__`` to a subclass that overrides ``forward``, and nothing else.
   Parameters, names, hooks, optimizers and ``state_dict`` stay; ``restore`` sets the class back.
4. The new ``forward`` (``recurrence`` for loops, ``layers`` for what interest layers are made of) calls the
   kernels of this package, or the original ``forward`` where they do not apply: another device, autocast, a hook
   on a part.
5. ``report`` lists what was made fast, and what was left and why.

``accelerate("recbole")`` does the same to each model that the library makes afterwards (``construction``).
``weights`` carries trained cells from one library to another.
"""

from __future__ import annotations

from torch import nn

from dien_fast.patches.apply import accelerate_model, restore_model
from dien_fast.patches.construction import accelerate_library, restore_library
from dien_fast.patches.library import Library
from dien_fast.patches.registry import LIBRARIES
from dien_fast.patches.report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]


def accelerate(target: nn.Module | str) -> Report:
    """Make a model of a known library fast in place, or the models that a library makes from now on.

    Modules that are recognised get another class and keep everything else: parameters, names, ``state_dict``,
    hooks, optimizers. They compute the same numbers. Modules that are not recognised are left as they are.

    Args:
        target: a model, or the name of a library that builds its models itself: ``"deepctr-torch"``,
            ``"recbole"``, ``"fuxictr"``, ``"prediction-flow"`` or ``"torch-rechub"``.

    Returns:
        A report that prints what was made fast and what was left; as a context manager it undoes this call at the
        end of the block.

    Raises:
        TypeError: if ``target`` is neither a module nor a name.
        ValueError: if the name is not known.
        ImportError: if the library is not installed.

    Example:
        >>> from dien_fast import accelerate, reference, restore
        >>> model = reference.Interest(8)
        >>> report = accelerate(model)
        >>> len(report.fast) > 0
        True
        >>> restore(model)
    """
    known = _model_or_library(target)
    return accelerate_library(known) if isinstance(known, Library) else accelerate_model(known)


def restore(target: nn.Module | str) -> None:
    """Undo :func:`accelerate`: the model's modules, or the library's constructors, are what they were before.

    Models that a library made meanwhile stay fast; each can be restored by itself.

    Args:
        target: what was given to :func:`accelerate`.

    Raises:
        TypeError: if ``target`` is neither a module nor a name.
        ValueError: if the name is not known.
    """
    known = _model_or_library(target)
    if isinstance(known, Library):
        restore_library(known)
    else:
        restore_model(known)


def _model_or_library(target: nn.Module | str) -> nn.Module | Library:
    names = sorted(LIBRARIES)
    if isinstance(target, nn.Module):
        return target
    if not isinstance(target, str):
        raise TypeError(f"target must be a torch.nn.Module or one of {names}, got {type(target).__name__}")
    if target not in LIBRARIES:
        raise ValueError(f"target must be a torch.nn.Module or one of {names}, got {target!r}")
    return LIBRARIES[target]
