"""accelerate() and restore()."""

from __future__ import annotations

import functools
import importlib
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from dien_fast.ops.attention_gru import backend, wants_native
from dien_fast.patches.library import Change, Library, Plan
from dien_fast.patches.probe import RefusedError
from dien_fast.patches.registry import LIBRARIES, looked_for, plan_of
from dien_fast.patches.report import Entry, Report
from dien_fast.patches.swap import Accelerated, swap, swap_back

_PICKLES = "a pickle of the whole model loads where dien_fast is installed; its state_dict needs nothing"


def accelerate(target: nn.Module | str) -> Report:
    """Make a model of a known library fast in place, or the models that a library makes from now on.

    What is known is given another class and keeps everything else: parameters, names, ``state_dict``, hooks,
    optimizers. Its numbers stay the same. Anything that is not recognised, by running a copy of it, is left.

    Args:
        target: a model, or the name of a library that builds its models itself: ``"deepctr-torch"``,
            ``"recbole"``, ``"fuxictr"``, ``"prediction-flow"`` or ``"torch-rechub"``.

    Returns:
        A report to print; as a context manager it restores what this call did.

    Raises:
        TypeError: for anything else than a module or a name.
        ValueError: for an unknown name.
        ImportError: if the library is not installed.

    Example:
        >>> from dien_fast import accelerate, reference, restore
        >>> model = reference.Interest(8)
        >>> report = accelerate(model)
        >>> len(report.fast) > 0
        True
        >>> restore(model)
    """
    if isinstance(target, nn.Module):
        return _accelerate_model(target)
    if isinstance(target, str):
        return _accelerate_library(_library(target))
    raise TypeError(f"target must be a torch.nn.Module or one of {sorted(LIBRARIES)}, got {type(target).__name__}")


def restore(target: nn.Module | str) -> None:
    """Undo :func:`accelerate`: the model's modules, or the library's classes, are the very ones they were.

    Models that a library made meanwhile stay fast; each can be restored by itself.

    Args:
        target: what was given to :func:`accelerate`.

    Raises:
        TypeError: for anything else than a module or a name.
        ValueError: for an unknown name.
    """
    if isinstance(target, nn.Module):
        for module in target.modules():
            swap_back(module)
    elif isinstance(target, str):
        _restore_library(_library(target))
    else:
        raise TypeError(
            f"target must be a torch.nn.Module or one of {sorted(LIBRARIES)}, got {type(target).__name__}"
        )


def _library(name: str) -> Library:
    if name not in LIBRARIES:
        raise ValueError(f"target must be a module or one of {sorted(LIBRARIES)}, got {name!r}")
    return LIBRARIES[name]


def _accelerate_model(model: nn.Module) -> Report:
    changed: list[weakref.ref[nn.Module]] = []

    def undo() -> None:
        for reference in reversed(changed):
            module = reference()
            if module is not None:
                swap_back(module)
        changed.clear()

    report = Report(_name(model), undo)
    modules = dict(model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    try:
        # Parts before the whole that holds them.
        for path, module in reversed(modules.items()):
            if isinstance(module, Accelerated):
                continue
            for change in _changes(module, report, path):
                kind = _name(change.module)
                swap(change.module, change.recipe)
                changed.append(weakref.ref(change.module))
                report.fast.append(Entry(paths[id(change.module)], kind, change.what))
    except BaseException:
        undo()
        raise
    report.fast.reverse()
    report.left.reverse()
    _add_notes(report, list(modules.values()))
    return report


def _changes(module: nn.Module, report: Report, path: str) -> Iterator[Change]:
    """Yield what can be made fast at a module, parts before the whole; say in the report what is left."""
    try:
        plan = plan_of(type(module))
        planned = Plan([], []) if plan is None else plan(module)
        yield from planned.changes
        report.left += [Entry(path, _name(module), sentence) for sentence in planned.left]
        if planned.whole is not None:
            yield planned.whole()
    except RefusedError as why:
        report.left.append(Entry(path, _name(module), str(why)))


def _add_notes(report: Report, modules: list[nn.Module]) -> None:
    already = sum(isinstance(module, Accelerated) for module in modules) - len(report.fast)
    if report.fast:
        report.notes.append(_PICKLES)
        devices = {str(parameter.device) for module in modules for parameter in module.parameters(recurse=False)}
        if devices - {"cpu", "meta"}:
            report.notes.append(
                f"there is no kernel for {', '.join(sorted(devices - {'cpu', 'meta'}))}: "
                "there the original code runs"
            )
        if not wants_native():
            report.notes.append(f"the backend is {backend()}: until another is chosen the original code runs")
    if already:
        report.notes.append(f"{already} modules were fast already")
    if not report.fast and not report.left and not already:
        kinds = Counter(_name(module) for module in modules)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        report.notes.append(f"nothing was recognised; looked for {looked_for()}; found {found}")


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


# ---- Libraries that build their models themselves ----


class _Construction:
    """The constructors of a library's classes, each with a step after it that makes the new module fast."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.report = Report(library.name, lambda: _restore_construction(self))
        self.active = True
        self.originals: list[tuple[type[nn.Module], Any, Any]] = []
        classes = library.classes()
        for cls in classes:
            original = cls.__dict__["__init__"]
            wrapper = self._wrap(cls, original)
            cls.__init__ = wrapper  # type: ignore[method-assign]
            self.originals.append((cls, original, wrapper))
            self.report.fast.append(Entry("", _class_name(cls), "made fast when it is constructed"))

    def _wrap(self, cls: type[nn.Module], original: Any) -> Any:
        @functools.wraps(original)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(module, *args, **kwargs)
            # A part may be fast already; a subclass is left, but for its parts.
            if self.active and type(module) is cls:
                made = _accelerate_model(module)
                if made.fast or made.left:
                    self.report.models.append(made)
                for entry in made.left:
                    warnings.warn(f"dien_fast left {entry}", RuntimeWarning, stacklevel=2)

        return __init__

    def undo(self) -> None:
        self.active = False
        for cls, original, wrapper in self.originals:
            if cls.__dict__.get("__init__") is wrapper:
                cls.__init__ = original  # type: ignore[method-assign]


_constructions: dict[str, _Construction] = {}


def _accelerate_library(library: Library) -> Report:
    if library.name in _constructions:
        report = Report(library.name, lambda: None)
        report.notes.append("models that it makes are made fast already")
        return report
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
    except RefusedError as why:
        report = Report(library.name, lambda: None)
        report.left.append(Entry("", library.name, str(why)))
        return report
    try:
        construction = _Construction(library)
    except (ImportError, AttributeError) as error:
        report = Report(library.name, lambda: None)
        report.left.append(Entry("", library.name, f"its classes cannot be imported: {error}"))
        return report
    _constructions[library.name] = construction
    construction.report.notes.append(_PICKLES)
    return construction.report


def _restore_library(library: Library) -> None:
    if library.name in _constructions:
        _restore_construction(_constructions[library.name])


def _restore_construction(construction: _Construction) -> None:
    construction.undo()
    if _constructions.get(construction.library.name) is construction:
        del _constructions[construction.library.name]


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
