"""Settings of Sphinx for the documentation."""

import importlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import options

import dien_fast

options.write(HERE / "_options")

project = "dien-fast"
author = "the authors of dien-fast"
version = release = dien_fast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_options", "sg_execution_times.rst", "tutorial/index.rst", "tutorial/sg_execution_times.rst"]
nitpicky = True  # a reference to something that is not documented is an error
# Types of other libraries, whose inventories could only be had from the network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|pa|pyarrow|pd|pandas|collections|concurrent|pathlib|nn|sklearn|argparse)\..*"),
    (r"py:.*", r"(Tensor|Any|optional|DataFrame|ndarray|Self|Accelerator|Path|dict\[str)"),
    # Parts of signatures that nobody but the package itself makes.
    (r"py:class", r"(.*\.)?(Vocabulary|_Catalogue|Tables|RunDirectory|Request|Words)"),
]
suppress_warnings = ["ref.python"]  # a bare DIEN in a signature may be the fast or the reference one

html_theme = "furo"
html_title = "dien-fast"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Returns as a plain section: else what stands before its first colon is taken for a type.
napoleon_custom_sections = ["Returns"]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorial",
    "filename_pattern": "shop",
    "run_stale_examples": True,  # the package may have changed, even where the script has not
    "abort_on_example_error": True,
    "show_signature": False,
    "capture_repr": (),
    "min_reported_time": 10**6,
    "download_all_examples": False,
}


def exists(name):
    """Return whether a dotted name of the package is there, documented or not."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def show_internal(app, env, node, content):
    """Show a reference to what is internal, and so on no page, as code; one to what does not exist is an error."""
    target = node.get("reftarget", "")
    return content if target.startswith("dien_fast.") and exists(target) else None


def without_rules(app, what, name, thing, options, signature, returns):
    """Show the type of a setting without the rule that checks it."""
    if not signature:
        return None
    rule = r"~?[\w.]*Rule\((?:[^()]|\([^()]*\))*\)"
    return re.sub(rf"~?(?:typing\.)?Annotated\[(.+?), {rule}\]", r"\1", signature), returns


def setup(app):
    """Register the handlers of references and signatures."""
    app.connect("missing-reference", show_internal)
    app.connect("autodoc-process-signature", without_rules)
