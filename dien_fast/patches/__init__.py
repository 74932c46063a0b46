"""Makes the DIEN of other libraries fast: the same numbers, through the kernels of this package.

A file for each library says which of its classes are known. ``registry`` finds them, ``probe`` finds out what a
cell computes by running a copy of it, and ``swap`` changes the class of a module and nothing else. ``weights``
carries trained cells from one library to another.
"""

from dien_fast.patches.apply import accelerate, restore
from dien_fast.patches.report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]
