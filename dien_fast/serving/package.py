"""Packages that run a model without Python: AOTInductor programs, with all that is needed to feed and check them.

A package is one ``.pt2`` file. It holds the programs of :mod:`dien_fast.serving.programs` and, as extra files, the
documents of :mod:`dien_fast.serving.exported`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import torch
from torch import Tensor

from dien_fast.errors import DienFastError
from dien_fast.files import check_archive, remove_abandoned, write_atomically
from dien_fast.serving.exported import Exported, check_output, documents
from dien_fast.serving.programs import Program, example, programs_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dien_fast.training.runs import Run


def export(
    run: Run,
    path: str | Path,
    *,
    candidate_features: Sequence[str] | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Path:
    """Compile a run's model into a package. This takes a C++ compiler and some minutes.

    The programs are compiled for this machine's instruction set; the kernels inside choose theirs anew on each
    machine. Batch size, length of histories and number of candidates stay free.

    Args:
        run: a trained model, from :func:`dien_fast.load`, on the CPU.
        path: the file to write, which ends in ``.pt2``.
        candidate_features: numeric and categorical features that a candidate has and not its user; None: those
            that histories are compared with.
        log: called with a line about each program.

    Returns:
        The path.

    Raises:
        DienFastError: the path ends otherwise, there is no such feature, or the model cannot be exported.

    Example:
        >>> export(dien_fast.load("runs/ml-100k"), "model.pt2")  # doctest: +SKIP
    """
    from torch._inductor import aot_compile
    from torch.export.pt2_archive._package import package_pt2

    path = Path(path)
    check_output(path, ".pt2")
    from dien_fast.training.runs import without_negatives

    files: dict[str, Any] = {}
    examples: dict[Program, Sequence[Tensor]] = {}
    for program in programs_of(run.model, without_negatives(run.schema), run.encoders, candidate_features):
        arguments = examples[program] = example(program.inputs)
        exported = trace(program, arguments)
        with _quiet():
            files[program.entry] = aot_compile(
                exported.module(), arguments, options={"aot_inductor.package": True}
            )
        log(f"{program.entry}: {len(program.inputs)} inputs, operators {', '.join(operators(exported))}")
    remove_abandoned(path)
    with write_atomically(path) as unfinished, unfinished.open("wb") as file:
        package_pt2(file, aoti_files=files, extra_files=documents(run, examples))
    return path


def trace(program: Program, arguments: Sequence[Tensor]) -> ExportedProgram:
    """Return the graph of a program, for every size of its arguments.

    Args:
        program: of a model in evaluation mode.
        arguments: an example of its inputs.
    """
    import torch.fx.experimental._config as shapes
    from torch.export import Dim

    every = tuple({0: Dim.DYNAMIC} for _ in arguments)
    # Otherwise sizes of 0 and 1, such as a single user, would be refused.
    with shapes.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
        return torch.export.export(program, tuple(arguments), dynamic_shapes=(every,), strict=False)


def operators(exported: ExportedProgram) -> list[str]:
    """Return the names of this package's operators in a graph, one for each call."""
    targets = [str(node.target) for node in exported.graph.nodes]
    return [name.split(".")[1] for name in targets if name.startswith("dien_fast.")]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the compiler warns of that concerns its own code alone."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        yield


class Package(Exported):
    """A package that :func:`export` wrote, opened in Python.

    Args:
        path: of the file.

    Attributes:
        description: the content of ``dien_fast.json``.

    Raises:
        DienFastError: there is no such file, or it is no package of this format.

    Example:
        >>> package = Package("model.pt2")  # doctest: +SKIP
        >>> package.check()  # doctest: +SKIP
        {'rows': 3e-08, 'candidates': 4.5e-08}
    """

    def __init__(self, path: str | Path) -> None:
        try:
            # A damaged program would end the process that loads it.
            check_archive(path)
        except OSError as error:
            raise DienFastError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # zipfile raises almost any, as damage has it
            raise DienFastError(f"{path} is not a package of dien-fast, or is damaged: {error}") from None
        super().__init__(path)
        self._programs: dict[str, Any] | None = None

    def _document(self, name: str) -> str:
        with ZipFile(self.path) as archive:
            places = [place for place in archive.namelist() if place.endswith(f"/extra/{name}")]
            if len(places) != 1:
                raise DienFastError(f"{self.path} is not a package of dien-fast: it has no {name}")
            return archive.read(places[0]).decode()

    def _run(self, program: str, arguments: Sequence[Tensor]) -> Tensor:
        if self._programs is None:
            from torch.export.pt2_archive._package import load_pt2

            self._programs = load_pt2(str(self.path)).aoti_runners
        with torch.no_grad():
            result: Tensor = self._programs[program](*arguments)
        return result
