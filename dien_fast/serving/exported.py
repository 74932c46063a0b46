"""What the formats of exported models share: what a file says about itself, and how its example is run.

Every format carries two documents:

dien_fast.json   versions, schema, fingerprint of the encoders; of each program its inputs, and an example
encoders.json    the vocabularies and quantiles by feature, as a run's ``encoders/`` has them
"""

from __future__ import annotations

import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dien_fast._version import __version__
from dien_fast.errors import DienFastError
from dien_fast.files import parse_json
from dien_fast.serving.programs import Input, Program

if TYPE_CHECKING:
    from dien_fast.training.runs import Run

FORMAT = 1
DESCRIPTION, ENCODERS = "dien_fast.json", "encoders.json"
# Another processor adds in another order, and has other roundings of exp and tanh.
TOLERANCE = 1e-5


class Exported(ABC):
    """A file that an export wrote.

    Args:
        path: of the file.

    Attributes:
        description: the content of ``dien_fast.json``.

    Raises:
        DienFastError: there is no such file, or it was not exported in this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description: dict[str, Any] = self._parsed(DESCRIPTION)
        if self.description.get("format") != FORMAT:
            raise DienFastError(
                f"{path} has format {self.description.get('format')!r}, this version of dien-fast reads {FORMAT}"
            )

    @abstractmethod
    def _document(self, name: str) -> str:
        """Return a document that the file carries."""

    @abstractmethod
    def _run(self, program: str, arguments: Sequence[Tensor]) -> Tensor:
        """Run a program on arguments of the right number, dtypes and dimensions."""

    def encoders(self) -> dict[str, Any]:
        """Return the content of ``encoders.json``: by feature, what a file of a run's ``encoders/`` holds."""
        return self._parsed(ENCODERS)

    def _parsed(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = parse_json(self._document(name))
        except DienFastError:
            raise
        except ValueError as error:
            raise DienFastError(f"{self.path} is damaged: its {name} is no JSON: {error}") from None
        return content

    def inputs(self, program: str) -> list[Input]:
        """Return the arguments of a program in their order.

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
            DienFastError: there is no such program, or an argument has another dtype, more than one dimension, or
                a size that does not go with another's.
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
        _check_sizes(inputs, arguments)
        return self._run(program, arguments)

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


def _check_sizes(inputs: Sequence[Input], arguments: Sequence[Tensor]) -> None:
    """Raise where sizes differ that must not: compiled programs do not look, and would read what is not there."""
    sizes: dict[str, tuple[str, int]] = {}
    for item, value in zip(inputs, arguments, strict=True):
        kind = item.size.removesuffix(" + 1")
        extra = int(kind != item.size)
        other, count = sizes.setdefault(kind, (item.name, value.numel() - extra))
        if count + extra != value.numel():
            raise DienFastError(
                f"{item.name} must have {count + extra} elements, to go with {other}, got {value.numel()}"
            )


def check_output(path: Path, suffix: str) -> None:
    """Raise DienFastError unless a path to export to ends in ``suffix``."""
    if path.suffix != suffix:
        raise DienFastError(f"output must end in {suffix}, got {path}")


def documents(run: Run, programs: dict[Program, Sequence[Tensor]]) -> dict[str, str]:
    """Return the documents that a file carries.

    Args:
        run: what is exported.
        programs: those of the file, each with arguments for its example.
    """
    schema = run.schema
    description = {
        "format": FORMAT,
        "versions": {"dien-fast": __version__, "torch": torch.__version__},
        "machine": platform.machine(),
        "model": run.config.model,
        "schema": schema.to_dict(),
        "fingerprint": run.encoders.fingerprint(),
        "programs": {program.entry: _described(program, given) for program, given in programs.items()},
    }
    features = (*schema.numeric, *schema.categorical, *schema.sequences)
    encoders = {name: run.encoders[name].to_dict() for name in features}
    return {
        DESCRIPTION: json.dumps(description, ensure_ascii=False),
        ENCODERS: json.dumps(encoders, ensure_ascii=False),
    }


def _described(program: Program, arguments: Sequence[Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        output = program(*arguments)
    return {
        "inputs": [item._asdict() for item in program.inputs],
        "example": {"arguments": [value.tolist() for value in arguments], "output": output.tolist()},
    }
