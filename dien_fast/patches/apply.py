"""Makes the modules of one model fast, and restores them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator

from torch import nn

from dien_fast.ops.backend import backend, wants_native
from dien_fast.patches.library import Change, Plan
from dien_fast.patches.probe import RefusedError
from dien_fast.patches.registry import looked_for, plan_of
from dien_fast.patches.report import PICKLES_NOTE, Entry, Report, class_name
from dien_fast.patches.swap import Accelerated, swap, swap_back


def accelerate_model(model: nn.Module) -> Report:
    """Make every module of a model fast that is recognised; see :func:`dien_fast.accelerate`."""
    changed: list[weakref.ref[nn.Module]] = []

    def undo() -> None:
        for reference in reversed(changed):
            module = reference()
            if module is not None:
                swap_back(module)
        changed.clear()

    report = Report(class_name(type(model)), undo)
    modules = dict(model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    try:
        # In reverse, children come before their parents: a layer is planned when its parts are fast.
        for path, module in reversed(modules.items()):
            if isinstance(module, Accelerated):
                continue
            for change in _changes(module, report, path):
                kind = class_name(type(change.module))
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


def restore_model(model: nn.Module) -> None:
    """Give every module of a model its own class again."""
    for module in model.modules():
        swap_back(module)


def _changes(module: nn.Module, report: Report, path: str) -> Iterator[Change]:
    """Yield the changes to a module, those of its parts first; add to the report what is left and why."""
    kind = class_name(type(module))
    try:
        plan = plan_of(type(module))
        planned = Plan([], []) if plan is None else plan(module)
        yield from planned.changes
        report.left += [Entry(path, kind, sentence) for sentence in planned.left]
        if planned.whole is not None:
            yield planned.whole()
    except RefusedError as why:
        report.left.append(Entry(path, kind, str(why)))


def _add_notes(report: Report, modules: list[nn.Module]) -> None:
    already = sum(isinstance(module, Accelerated) for module in modules) - len(report.fast)
    if report.fast:
        report.notes.append(PICKLES_NOTE)
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
        kinds = Counter(class_name(type(module)) for module in modules)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        report.notes.append(f"nothing was recognised; looked for {looked_for()}; found {found}")
