"""Packages that run a model without Python: AOTInductor programs, with all that is needed to feed and check them.

A package is one ``.pt2`` file. Beside the programs of :mod:`dien_fast.serving.programs` it holds, as extra files,

dien_fast.json   versions, schema, fingerprint of the encoders; of each program its inputs, and an example
encoders.json    the vocabularies and quantiles by feature, as a run's ``encoders/`` has them
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from dien_fast._version import __version__
from dien_fast.errors import DienFastError
from dien_fast.files import write_atomically
from dien_fast.serving.programs import Input, Program, example, programs_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dien_fast.training.runs import Run

FORMAT = 1
DESCRIPTION, ENCODERS = "dien_fast.json", "encoders.json"
# Another processor adds in another order, and has other roundings of exp and tanh.
TOLERANCE = 1e-5


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
    if path.suffix != ".pt2":
        raise DienFastError(f"output must end in .pt2, got {path}")
    from dien_fast.training.runs import without_negatives

    files: dict[str, Any] = {}
    described = {}
    schema = without_negatives(run.schema)
    for program in programs_of(run.model, schema, run.encoders, candidate_features):
        arguments = example(program.inputs)
        exported = trace(program, arguments)
        with _quiet():
            files[program.entry] = aot_compile(
                exported.module(), arguments, options={"aot_inductor.package": True}
            )
        described[program.entry] = _described(program, arguments)
        log(f"{program.entry}: {len(program.inputs)} inputs, operators {', '.join(operators(exported))}")
    description = _description(run) | {"programs": described}
    features = (*schema.numeric, *schema.categorical, *schema.sequences)
    encoders = {name: run.encoders[name].to_dict() for name in features}
    with write_atomically(path) as unfinished, unfinished.open("wb") as file:
        package_pt2(
            file,
            aoti_files=files,
            extra_files={
                DESCRIPTION: json.dumps(description, ensure_ascii=False),
                ENCODERS: json.dumps(encoders, ensure_ascii=False),
            },
        )
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


def _described(program: Program, arguments: Sequence[Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        output = program(*arguments)
    return {
        "inputs": [item._asdict() for item in program.inputs],
        "example": {"arguments": [value.tolist() for value in arguments], "output": output.tolist()},
    }


def _description(run: Run) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": {"dien-fast": __version__, "torch": torch.__version__},
        "machine": platform.machine(),
        "model": run.config.model,
        "schema": run.schema.to_dict(),
        "fingerprint": run.encoders.fingerprint(),
    }


class Package:
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
        self.path = Path(path)
        self.description: dict[str, Any] = json.loads(self._extra(DESCRIPTION))
        if self.description.get("format") != FORMAT:
            raise DienFastError(
                f"{path} has format {self.description.get('format')!r}, this version of dien-fast reads {FORMAT}"
            )
        self._programs: dict[str, Any] | None = None

    def _extra(self, name: str) -> str:
        """Return an extra file."""
        try:
            with ZipFile(self.path) as archive:
                (place,) = (place for place in archive.namelist() if place.endswith(f"/extra/{name}"))
                return archive.read(place).decode()
        except OSError as error:
            raise DienFastError(f"{self.path} cannot be read: {error.strerror or error}") from None
        except (BadZipFile, ValueError) as error:
            raise DienFastError(f"{self.path} is not a package of dien-fast, or is damaged: {error}") from None

    def encoders(self) -> dict[str, Any]:
        """Return the content of ``encoders.json``: by feature, what a file of a run's ``encoders/`` holds."""
        content: dict[str, Any] = json.loads(self._extra(ENCODERS))
        return content

    def inputs(self, program: str) -> list[Input]:
        """Return the arguments of a program, ``"rows"`` or ``"candidates"``, in their order.

        Raises:
            DienFastError: there is no such program.
        """
        return [Input(**item) for item in self._of(program)["inputs"]]

    def _of(self, program: str) -> dict[str, Any]:
        programs: dict[str, dict[str, Any]] = self.description["programs"]
        if program not in programs:
            raise DienFastError(f"program must be one of {', '.join(programs)}, got {program!r}")
        return programs[program]

    def run(self, program: str, arguments: Sequence[Tensor]) -> Tensor:
        """Return what a program returns for its arguments: click probabilities, float32.

        Raises:
            DienFastError: there is no such program, or an argument has another dtype or more than one dimension.
        """
        inputs = self.inputs(program)
        if len(arguments) != len(inputs):
            raise DienFastError(f"{program} takes {len(inputs)} arguments, got {len(arguments)}")
        for item, value in zip(inputs, arguments, strict=True):
            if value.dtype != getattr(torch, item.dtype) or value.dim() != 1:
                raise DienFastError(
                    f"{item.name} must be {item.dtype} with one dimension, got {value.dtype} of shape "
                    f"{tuple(value.shape)}"
                )
        if self._programs is None:
            from torch.export.pt2_archive._package import load_pt2

            self._programs = load_pt2(str(self.path)).aoti_runners
        with torch.no_grad():
            result: Tensor = self._programs[program](*arguments)
        return result

    def check(self) -> dict[str, float]:
        """Run the example of each program; return the largest difference from what its model gave.

        Raises:
            DienFastError: a difference is above 1e-5.
        """
        found = {}
        for name, content in self.description["programs"].items():
            arguments = [
                torch.tensor(value, dtype=getattr(torch, item.dtype))
                for item, value in zip(self.inputs(name), content["example"]["arguments"], strict=True)
            ]
            output = self.run(name, arguments)
            found[name] = float((output - torch.tensor(content["example"]["output"])).abs().max())
            if not found[name] <= TOLERANCE:
                raise DienFastError(
                    f"{self.path}: {name} differs from the exported model by {found[name]:.1e}, more than "
                    f"{TOLERANCE:.0e}"
                )
        return found
