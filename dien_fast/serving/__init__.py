"""Trained models outside of training: programs that run without Python.

:func:`export` writes a package, :class:`Package` reads one, and :mod:`dien_fast.serving.programs` says what a
package's programs take and return.
"""

from dien_fast.serving.package import Package, export
from dien_fast.serving.programs import Input

__all__ = ["Input", "Package", "export"]
