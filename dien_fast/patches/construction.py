"""Makes the models of a library fast when the library constructs them, and stops doing so."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

from torch import nn

from dien_fast.patches.apply import accelerate_model
from dien_fast.patches.library import Library
from dien_fast.patches.probe import RefusedError
from dien_fast.patches.report import PICKLES_NOTE, Entry, Report, class_name


class _Construction:
    """Wraps the constructors of a library's classes: after the original, the wrapper makes the new module fast."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.report = Report(library.name, self.undo)
        self.active = True
        self.originals: list[tuple[type[nn.Module], Any, Any]] = []
        for cls in library.classes():
            original = cls.__dict__["__init__"]
            wrapper = self._wrap(cls, original)
            cls.__init__ = wrapper  # type: ignore[method-assign]
            self.originals.append((cls, original, wrapper))
            self.report.fast.append(Entry("", class_name(cls), "made fast when it is constructed"))
        self.report.notes.append(PICKLES_NOTE)

    def _wrap(self, cls: type[nn.Module], original: Any) -> Any:
        @functools.wraps(original)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(module, *args, **kwargs)
            # A subclass may compute something else and is left; its parts have constructors of their own.
            if self.active and type(module) is cls:
                made = accelerate_model(module)
                if made.fast or made.left:
                    self.report.models.append(made)
                for entry in made.left:
                    warnings.warn(f"dien_fast left {entry}", RuntimeWarning, stacklevel=2)

        return __init__

    def undo(self) -> None:
        """Put the original constructors back; a wrapper below somebody else's does nothing from now on."""
        self.active = False
        for cls, original, wrapper in self.originals:
            if cls.__dict__.get("__init__") is wrapper:
                cls.__init__ = original  # type: ignore[method-assign]
        if _constructions.get(self.library.name) is self:
            del _constructions[self.library.name]


_constructions: dict[str, _Construction] = {}


def accelerate_library(library: Library) -> Report:
    """Make every model fast that a library makes from now on; see :func:`dien_fast.accelerate`."""
    unchanged = Report(library.name, lambda: None)
    if library.name in _constructions:
        unchanged.notes.append("models that it makes are made fast already")
        return unchanged
    try:
        importlib.import_module(library.roots[0])
    except ModuleNotFoundError as error:
        if error.name != library.roots[0]:
            raise
        raise ImportError(
            f"dien_fast.accelerate({library.name!r}) needs {library.distribution}, which is not installed: "
            f"pip install {library.distribution}=={library.versions[-1]}"
        ) from error
    try:
        library.check_version()
        construction = _Construction(library)
    except RefusedError as why:
        unchanged.left.append(Entry("", library.name, str(why)))
        return unchanged
    except (ImportError, AttributeError) as error:
        unchanged.left.append(Entry("", library.name, f"its classes cannot be imported: {error}"))
        return unchanged
    _constructions[library.name] = construction
    return construction.report


def restore_library(library: Library) -> None:
    """Give a library its own constructors again."""
    if library.name in _constructions:
        _constructions[library.name].undo()
