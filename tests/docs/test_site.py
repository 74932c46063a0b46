"""The documentation builds without a warning, shows every public name, and takes nothing from other hosts."""

import importlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[2]
# What the site is made of; built in a copy, as the gallery writes into the folder of the pages.
SOURCES = ("docs", "examples", "benchmarks/results", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MODULES = ("dien_fast", "dien_fast.nn", "dien_fast.models", "dien_fast.data", "dien_fast.training")
MODULES += ("dien_fast.patches", "dien_fast.reference")
# Attributes that make a browser fetch something, by tag. A hyperlink fetches nothing until somebody follows it.
RESOURCES = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


def build(directory):
    for source in SOURCES:
        target = directory / source
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, target)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "site"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "site"


class Resources(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        value = attributes.get(RESOURCES.get(tag, ""))
        if value and attributes.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.found.append(value)


def is_foreign(url):
    return url.startswith(("http:", "https:", "//"))


def check_no_page_needs_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Resources()
        parser.feed(page.read_text())
        assert parser.found
        assert not [url for url in parser.found if is_foreign(url)], page.name
    for sheet in site.rglob("*.css"):
        text = sheet.read_text().replace(" ", "").replace("'", "").replace('"', "")
        assert "@import" not in text
        assert not [rest for rest in text.split("url(")[1:] if is_foreign(rest)], sheet.name


def check_every_public_name_is_documented(site):
    with (site / "objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, uri: uri)
    check_every_public_name_is_among(
        set().union(*(names for role, names in inventory.items() if role.startswith("py:")))
    )


def check_every_public_name_is_among(documented):
    assert "dien_fast.functional.attention_gru" in documented
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            home = getattr(getattr(module, name), "__module__", "")
            names = {f"{module_name}.{name}", f"{home}.{name}", f"dien_fast.{name}"}
            assert names & documented or name == "__version__", f"{module_name}.{name} is on no page"


def check_the_tutorial_was_run(site):
    page = (site / "tutorial" / "shop.html").read_text()
    assert "test AUC: 0." in page
    assert page.count("<img ") >= 5
    # The user's present brand leads the ranking, as the page says.
    ranking = page.split("item brand  price  probability")[1]
    assert ranking.split()[1] == "b3"


def test_every_public_name_is_in_a_directive():
    """What the site is asked for, so that a forgotten name is noticed without building it."""
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst"))
    asked = set(re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE))
    for module in re.findall(r"^\.\. automodule:: (\S+)\n   :imported-members:$", pages, re.MULTILINE):
        asked |= {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    check_every_public_name_is_among(asked)


@pytest.mark.slow
def test_the_site(tmp_path):
    site = build(tmp_path)
    check_no_page_needs_another_host(site)
    check_every_public_name_is_documented(site)
    check_the_tutorial_was_run(site)


def test_a_foreign_resource_is_noticed(tmp_path):
    for number in range(21):
        (tmp_path / f"{number}.html").write_text('<script src="own.js"></script><a href="https://a.b">a link</a>')
    check_no_page_needs_another_host(tmp_path)
    for page, text in (("0.html", '<img src="https://a.b/c.png">'), ("style.css", "b { c: url('//a.b/font') }")):
        (tmp_path / page).write_text(text)
        with pytest.raises(AssertionError, match=page):
            check_no_page_needs_another_host(tmp_path)
        (tmp_path / page).write_text('<img src="own.png">')
