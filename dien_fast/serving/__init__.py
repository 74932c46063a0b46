"""Trained models outside of training: programs that run without Python.

:func:`export` writes a package, :class:`Package` reads one; :func:`export_onnx` and :class:`OnnxModel` do so in
ONNX's format. :mod:`dien_fast.serving.programs` says what the programs inside take and return.
"""

from dien_fast.serving.exported import Exported
from dien_fast.serving.onnx_model import OnnxModel, export_onnx
from dien_fast.serving.package import Package, export
from dien_fast.serving.programs import Input
from dien_fast.serving.threads import threads

__all__ = ["Exported", "Input", "OnnxModel", "Package", "export", "export_onnx", "threads"]
