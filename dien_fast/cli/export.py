"""``dien-fast export``: a run as one file that needs no Python; ``dien-fast check`` runs its example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dien_fast.errors import DienFastError

_EXAMPLES = """\
examples:
  dien-fast export runs/ml-100k --output model.pt2
  dien-fast check model.pt2
"""


def add_parser(commands: Any) -> None:
    """Add the parsers of both commands."""
    parser = commands.add_parser(
        "export",
        help="write a run as one file that runs without Python",
        description="Compile a trained model with AOTInductor: rows, and many candidates of each user. C++ "
        "programs load the file with LibTorch and this package's library.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run directory that train wrote")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write, model.pt2")
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
    from dien_fast.serving import Package, export
    from dien_fast.training.runs import load

    output = Path(arguments.output)
    if output.suffix != ".pt2":
        raise DienFastError(f"output must end in .pt2, got {output}")
    if not output.parent.is_dir():
        raise DienFastError(f"the directory {output.parent} to write {output.name} to does not exist")
    features = None if arguments.candidate_features is None else arguments.candidate_features.split(",")
    export(load(arguments.run), output, candidate_features=features, log=lambda line: print(line, flush=True))
    Package(output).check()
    print(f"written to {output}: {output.stat().st_size / 2**20:.1f} MiB; its examples agree with the model")


def check(arguments: argparse.Namespace) -> None:
    """Run ``dien-fast check``."""
    from dien_fast.serving import Package

    package = Package(arguments.file)
    for program, difference in package.check().items():
        print(f"{program}: differs from the exported model by {difference:.1e}")
    description = package.description
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    print(f"{arguments.file}: {description['model']}, exported by {versions}")
