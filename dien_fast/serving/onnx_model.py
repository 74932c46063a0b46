"""Models in ONNX's format, which ONNX Runtime runs without anything of this package.

A file holds one graph: the program ``candidates`` of :mod:`dien_fast.serving.programs`, or ``rows`` where no
feature is a candidate's. Rows of a table are users with one candidate each, whose offsets are 0, 1, 2 and so on.
The documents of :mod:`dien_fast.serving.exported` are the metadata of the model.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dien_fast.errors import DienFastError
from dien_fast.files import remove_abandoned, write_atomically
from dien_fast.ops.backend import LOADED
from dien_fast.serving.exported import Exported, check_output, documents
from dien_fast.serving.package import trace
from dien_fast.serving.programs import example, programs_of

if TYPE_CHECKING:
    from dien_fast.training.runs import Run

# From 23 on, self-attention is one operator, which ONNX Runtime 1.32 refuses for a batch without sessions.
OPSET = 22
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")
_LARGEST = 2**31  # bytes of a file, as protobuf counts them
# The metadata with the sha256 of the file, computed with zeros in place of its 64 digits. ONNX has no checksums.
_DIGEST, _NO_DIGEST = "dien_fast.sha256", "0" * 64
# How protobuf writes this name, and that 64 bytes follow.
_BEFORE_DIGEST = _DIGEST.encode() + b"\x12\x40"


def export_onnx(
    run: Run,
    path: str | Path,
    *,
    candidate_features: Sequence[str] | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write a run's model as one ONNX file of standard operators. This takes some seconds.

    Number of users and candidates and length of histories stay free.

    Args:
        run: a trained model, from :func:`dien_fast.load`, on the CPU.
        path: the file to write, which ends in ``.onnx``.
        candidate_features: as for :func:`export`.
        log: called with a line about the program.

    Returns:
        The path.

    Raises:
        DienFastError: the path ends otherwise, there is no such feature, the model is too large for a file, or the
            native library is missing.
        ImportError: onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> export_onnx(dien_fast.load("runs/ml-100k"), "model.onnx")  # doctest: +SKIP
    """
    path = Path(path)
    check_output(path, ".onnx")
    _import_runtime()
    if not LOADED:
        raise DienFastError("an export to ONNX needs dien-fast's native library, which was not built")
    size = sum(weight.numel() * weight.element_size() for weight in run.model.state_dict().values())
    if size >= _LARGEST:
        raise DienFastError(f"an ONNX file holds less than 2 GiB, but the model has {size / 2**30:.1f} GiB")
    from dien_fast.serving.onnx_operators import PLAIN, TRANSLATIONS
    from dien_fast.training.runs import without_negatives

    # The last one is candidates, where there is one.
    *_, program = programs_of(run.model, without_negatives(run.schema), run.encoders, candidate_features)
    arguments = example(program.inputs)
    with _quiet():
        exported = trace(program, arguments)
        for node in exported.graph.nodes:
            # Of the two names of one operator, decompositions know the other alone.
            if node.target is torch.ops.aten.item.default:
                node.target = torch.ops.aten._local_scalar_dense.default
        model = torch.onnx.export(
            exported.run_decompositions(PLAIN),
            (),
            custom_translation_table=TRANSLATIONS,
            opset_version=OPSET,
            input_names=[item.name for item in program.inputs],
            output_names=["probability"],
            dynamo=True,
            verbose=False,
        )
    assert model is not None
    model.model.metadata_props.update(documents(run, {program: arguments}) | {_DIGEST: _NO_DIGEST})
    remove_abandoned(path)
    with write_atomically(path) as unfinished:
        model.save(str(unfinished), external_data=False)
        _write_digest(unfinished)
    log(f"{program.entry}: {len(program.inputs)} inputs, {len(model.model.graph)} operators of opset {OPSET}")
    return path


def _digest(content: bytes) -> tuple[int, str]:
    """Return where a file has its digest, and what that should be; -1 where it has none."""
    place = content.find(_BEFORE_DIGEST)
    if place < 0:
        return place, ""
    place += len(_BEFORE_DIGEST)
    view, digest = memoryview(content), hashlib.sha256()
    for part in (view[:place], _NO_DIGEST.encode(), view[place + len(_NO_DIGEST) :]):
        digest.update(part)
    return place, digest.hexdigest()


def _write_digest(path: Path) -> None:
    place, digest = _digest(path.read_bytes())
    assert place >= 0
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest.encode())


def _check_digest(path: Path) -> None:
    """Raise DienFastError for a file whose digest is another one's; files of earlier versions have none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DienFastError(f"{path} cannot be read: {error.strerror}") from None
    place, digest = _digest(content)
    if place >= 0 and content[place : place + len(digest)] != digest.encode():
        raise DienFastError(f"{path} is damaged: its checksum is wrong")


def _import_runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is not installed: pip install "dien-fast[onnx]"') from error
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of its own code."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxModel(Exported):
    """A model that :func:`export_onnx` wrote, run by ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: that compute one call; None leaves the number to ONNX Runtime.

    Attributes:
        description: the content of ``dien_fast.json``.

    Raises:
        DienFastError: there is no such file, or it is no model of this format.
        ImportError: onnxruntime is not installed.

    Example:
        >>> OnnxModel("model.onnx").check()  # doctest: +SKIP
        {'candidates': 4.5e-08}
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        runtime = _import_runtime()
        if not Path(path).is_file():
            raise DienFastError(f"{path} cannot be read: no such file")
        _check_digest(Path(path))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors: warnings concern ONNX Runtime's own optimisations
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no common base but this
            reason = str(error).splitlines()[0]
            raise DienFastError(f"{path} is not a model that ONNX Runtime reads: {reason}") from None
        super().__init__(path)

    def _document(self, name: str) -> str:
        found = self.session.get_modelmeta().custom_metadata_map
        if name not in found:
            raise DienFastError(f"{self.path} was not exported by dien-fast: it has no metadata {name}")
        return str(found[name])

    def _run(self, program: str, arguments: Sequence[Tensor]) -> Tensor:
        names = [item.name for item in self.inputs(program)]
        given = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        try:
            (probability,) = self.session.run(None, given)
        except Exception as error:
            raise DienFastError(f"{program}: ONNX Runtime refuses the arguments: {error}") from None
        return torch.from_numpy(probability)
