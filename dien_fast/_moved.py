"""Lets pickles of whole models that were made before their classes moved load."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# By the name of a module that such a pickle imports, the module that has its classes now.
MOVED = {
    "dien_fast.attention_group": "dien_fast.reference.groups",
    "dien_fast.layers": "dien_fast.reference.layers",
    "dien_fast.patches.deepctr_torch": "dien_fast.patches.libraries.deepctr_torch",
    "dien_fast.patches.fuxictr": "dien_fast.patches.libraries.fuxictr",
    "dien_fast.patches.listing": "dien_fast.patches.libraries.article_listing",
    "dien_fast.patches.recbole": "dien_fast.patches.libraries.recbole",
    "dien_fast.patches.torch_rechub": "dien_fast.patches.libraries.torch_rechub",
}


class _MovedModules(MetaPathFinder, Loader):
    """Answers an import of an old name with the module of the new one, the very same object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns what sys.modules holds afterwards.
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


# Last, so that it is asked only for names that nobody else knows.
sys.meta_path.append(_MovedModules())
