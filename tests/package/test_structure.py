"""The shape of the sources: imports run one way, and no function or file is too long to read."""

import ast
import subprocess
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dien_fast"

# A room may import from the rooms above it and from itself.
ROOMS = (
    "_version",
    "_native",
    "_moved",
    "lines",
    "errors",
    "settings",
    "files",
    "progress",
    "reference",
    "ops",
    "ragged",
    "functional",
    "nn",
    "models",
    "data",
    "patches",
    "training",
    "serving",
    "cli",
    "__main__",
)
FUNCTION_LINES = 60
FILE_LINES = 500


def tracked(*patterns):
    """The files of the repository that match, tracked or about to be."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.splitlines() if (path := ROOT / name).exists()]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree):
    """Every node of a module that runs, so none below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements(node)


def imports():
    """What each module of the package imports: at its top, in its functions, and by name on first use."""
    sources = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for name, path in sources.items():
        found = graph.setdefault(name, set())
        for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                found.update(
                    whole if (whole := f"{node.module}.{alias.name}") in sources else node.module
                    for alias in node.names
                )
            elif isinstance(node, ast.Constant) and path.name == "__init__.py" and node.value in sources:
                found.add(node.value)
        found.intersection_update(sources)
        found.discard(name)
    return graph


def circles(graph):
    """The sets of modules that reach one another."""
    components = networkx.strongly_connected_components(networkx.DiGraph(graph))
    return sorted(sorted(component) for component in components if len(component) > 1)


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {}}) == [["b", "c"]]


def test_imports_have_no_circle():
    assert circles(imports()) == []


def room(module):
    """The room of a module; empty for the package itself, which offers what the rooms hold."""
    return module.partition(".")[2].partition(".")[0]


def allowed_in(name):
    """The rooms that a room may import from; the command is a user of the package like any other."""
    return [*ROOMS[: ROOMS.index(name) + 1], *([""] if name in ("cli", "__main__") else [])]


def test_imports_run_from_room_to_room_one_way():
    graph = imports()
    assert {room(module) for module in graph} == {"", *ROOMS}
    wrong = [
        f"{module} -> {other}"
        for module, imported in graph.items()
        for other in imported
        if module != "dien_fast" and room(other) not in allowed_in(room(module))
    ]
    assert sorted(wrong) == []


def function_lengths(path):
    """The functions of a file and their lines, docstrings not counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


def test_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in tracked("*.py")
        for name, lines in function_lengths(path)
        if lines > FUNCTION_LINES
    ]
    assert long == []


def test_files_are_short():
    long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for path in tracked("*.py", "*.h", "*.cpp", "*.cu", "*.cuh", "*.sh", "Makefile")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES
    ]
    assert long == []
