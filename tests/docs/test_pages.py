"""Every code block of the README and of the pages is run, each page in a session and a directory of its own.

Languages: ``python`` and ``bash`` are executed, ``toml`` must be a schema, and ``output`` must be what the block
before it printed, where ``...`` stands for anything. In ``bash``, ``dien-fast`` is called in this process, as
starting a new one for each command takes seconds, and ``dien-fast train`` runs for one epoch. A block behind
``<!-- skip: next "reason" -->`` is not run.
"""

import contextlib
import doctest
import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Sybil
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from dien_fast.cli import main
from dien_fast.data import Schema, read_event_table
from dien_fast.data.schema import read_toml
from dien_fast.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What `make docs` writes there.
PAGES = [page for page in PAGES if not page.parent.name.startswith("_")]
RUN = {"python", "bash", "toml", "output"}
NOT_CODE = {"text", "bibtex", "csv", "json"}
# How many blocks of a page are not run; each says why.
SKIPPED = {
    "README.md": 2,
    "CONTRIBUTING.md": 6,
    "docs/accelerate.md": 1,
    "docs/getting-started.md": 2,
    "docs/large-tables.md": 2,
    "docs/movielens.md": 1,
    "docs/next-event.md": 1,
    "docs/prepared.md": 2,
    "docs/robustness.md": 3,
    "docs/serving.md": 2,
    "docs/training.md": 2,
    "docs/without-python.md": 3,
}


def name_of(page):
    return str(page.relative_to(ROOT))


def run_commands(source):
    """Run the lines of a shell block, one after the other; return what they printed."""
    printed = ""
    for line in source.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "dien-fast":
            printed += subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            continue
        epochs = ["--epochs", "1"] if words[1] == "train" and "--resume" not in words else []
        status = None
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            try:
                status = main(words[1:] + epochs)
            except SystemExit as end:  # --help
                status = end.code
        assert status == 0, f"{line}: exit status {status}"
        printed += stream.getvalue()
    return printed


class Session:
    """Runs the blocks of one page and knows what the last one printed."""

    def __init__(self):
        self.printed = ""
        self.reasons = []

    def run(self, page):
        parsers = [SkipParser(), PythonCodeBlockParser()]
        for language in ("bash", "toml", "output"):
            parsers.append(CodeBlockParser(language, getattr(self, language)))
        document = Sybil(parsers=parsers).parse(page)
        document.namespace["__name__"] = "page"
        for example in document.examples():
            stream = io.StringIO()
            try:
                with contextlib.redirect_stdout(stream):
                    example.evaluate()
            except SkipTest as skip:
                self.reasons.append(str(skip))
            self.printed = stream.getvalue() or self.printed

    def bash(self, example):
        print(run_commands(example.parsed), end="")

    def toml(self, example):
        """Check a schema; where its first line names a file, it is that file's content, or makes it."""
        first = example.parsed.splitlines()[0]
        named = re.fullmatch(r"# (\S+\.toml)", first)
        path = Path(named[1] if named else "page.toml")
        if named and path.exists():
            assert path.read_text() == example.parsed
        path.write_text(example.parsed)
        if "events" in read_toml(path):
            # The schema is looked at before the table.
            with pytest.raises(DataError, match=r"no\.csv: no such file"):
                read_event_table("no.csv", path)
        else:
            Schema.from_toml(path)

    def output(self, example):
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(example.parsed, self.printed, flags)
        return None if same else f"expected\n{example.parsed}\nbut the block before printed\n{self.printed}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    session = Session()
    session.run(page)
    assert len(session.reasons) == SKIPPED.get(name_of(page), 0)
    for reason in session.reasons:
        assert len(reason.split()) >= 4, f"{reason!r} does not say why the block is not run"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes(page):
    """A fence of another language would not be run; plain text needs no run."""
    fences = re.findall(r"^\s*```+(.*)$", page.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert not re.search("^(<<<<<<<|=======|>>>>>>>)", page.read_text(), re.MULTILINE), "marks of a merge"
    unknown = [fence for fence in fences[::2] if fence not in RUN | NOT_CODE and not fence.startswith("{")]
    assert unknown == []


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\nassert 1 == 2\n```", AssertionError),
        ("```bash\nfalse\n```", subprocess.CalledProcessError),
        ("```bash\ndien-fast evaluate nowhere\n```", AssertionError),
        ("```toml\nlable = 'clicked'\n```", DataError),
        ("```bash\necho 1\n```\n\n```output\n2\n```", SybilFailure),
    ],
)
def test_a_wrong_block_is_noticed(block, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text(f"# A page\n\n{block}\n")
    with pytest.raises(error):
        Session().run(Path("page.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_key_of_the_schema_is_explained():
    page = (ROOT / "docs" / "own-data.md").read_text()
    rows = dict(re.findall(r"^\| `([\w\[\]]+)` \| (.*?) \| ", page, re.MULTILINE))
    for name, default in Schema(categorical=["item"]).to_dict().items():
        shown = rows["[[groups]]" if name == "groups" else name].strip("`").replace("\\", "")
        if name not in ("categorical", "groups"):
            assert shown == ("none" if default is None else json.dumps(default)), name


def test_the_table_of_the_examples_is_the_tutorials():
    script = (ROOT / "examples" / "shop.py").read_text()
    made = {}
    exec(script[: script.index("# %%\n# Training")], made)
    assert (made["folder"] / "clicks.csv").read_bytes() == (ROOT / "examples" / "clicks.csv").read_bytes()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
