"""``dien-fast export``: a run as one file that needs no Python; ``dien-fast check`` runs its example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.errors import DienFastError
from dien_fast.lines import print_line

if TYPE_CHECKING:
    from dien_fast.serving import Exported

_FORMATS = {"onnx": ".onnx", "pt2": ".pt2"}
_EXAMPLES = """\
examples:
  dien-fast export runs/ml-100k --output model.pt2
  dien-fast export runs/ml-100k --format onnx --output model.onnx
  dien-fast check model.pt2
"""


def add_parser(commands: Any) -> None:
    """Add the parsers of both commands."""
    parser = commands.add_parser(
        "export",
        help="write a run as one file that runs without Python",
        description="Write a trained model as one file that scores rows and many candidates of each user: "
        "compiled by AOTInductor for C++ programs, which load it with LibTorch and this package's library, or in "
        "standard operators of ONNX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run directory that train wrote")
    parser.add_argument(
        "--format", choices=sorted(_FORMATS), help="of the file (default: what the ending of --output says)"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the file to write, model.pt2 or model.onnx"
    )
    parser.add_argument(
        "--candidate-features",
        metavar="A,B",
        help="features that a candidate has and not its user (default: those that histories are compared with)",
    )
    parser.set_defaults(command=run)
    checker = commands.add_parser(
        "check",
        help="run the example inside an exported file",
        description="Run the programs of an exported file on the example that it carries, and compare with what "
        "the model gave when it was exported.",
    )
    checker.add_argument("file", metavar="FILE", help="what export wrote")
    checker.set_defaults(command=check)


def run(arguments: argparse.Namespace) -> None:
    """Run ``dien-fast export``."""
    from dien_fast import serving
    from dien_fast.training.runs import load

    output = Path(arguments.output)
    ending = _FORMATS.get(arguments.format, output.suffix)
    if output.suffix != ending or ending not in _FORMATS.values():
        wanted = ending if arguments.format else " or ".join(_FORMATS.values())
        raise DienFastError(f"output must end in {wanted}, got {output}")
    if not output.parent.is_dir():
        raise DienFastError(f"the directory {output.parent} to write {output.name} to does not exist")
    features = None if arguments.candidate_features is None else arguments.candidate_features.split(",")
    write = serving.export_onnx if ending == ".onnx" else serving.export
    write(load(arguments.run), output, candidate_features=features, log=print_line)
    _open(output).check()
    print_line(f"written to {output}: {output.stat().st_size / 2**20:.1f} MiB; its examples agree with the model")


def check(arguments: argparse.Namespace) -> None:
    """Run ``dien-fast check``."""
    exported = _open(Path(arguments.file))
    for program, difference in exported.check().items():
        print_line(f"{program}: differs from the exported model by {difference:.1e}")
    description = exported.description
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    print_line(f"{arguments.file}: {description['model']}, exported by {versions}")


def _open(path: Path) -> Exported:
    from dien_fast.serving import OnnxModel, Package

    return OnnxModel(path) if path.suffix == ".onnx" else Package(path)
