"""How the site is built: `make docs`, offline, with nothing fetched and nothing run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))

from generate import generate

from medtransfer import __version__
from medtransfer.app import config_dir
from medtransfer.cli import _parser

project = "medtransfer"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "reports", "**.ipynb_checkpoints"]
highlight_language = "text"

nb_execution_mode = "off"
myst_heading_anchors = 3

default_role = "code"  # docstrings write code in single backticks
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"medtransfer {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_extra_path = ["reports"]  # whole reports, as the program wrote them, for the gallery
html_css_files = ["site.css"]
# what is copied is what one types: no prompt, no output below it
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

WIDTH = "92"  # columns of what `--help` prints


class Help(SphinxDirective):
    """What a command of the program prints by `--help`; without an argument, the program itself."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one literal block."""
        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = WIDTH
        try:
            text = commands()[self.arguments[0] if self.arguments else ""].format_help()
        finally:
            os.environ.pop("COLUMNS")
            os.environ |= {} if before is None else {"COLUMNS": before}
        return [nodes.literal_block(text, text, language="text")]


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, and that of the program under an empty name."""
    parser = _parser()
    (choices,) = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {"": parser, **choices}


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the pages of the configuration before any page is read."""
    app.add_directive("help", Help)
    app.connect(
        "builder-inited", lambda app: generate(config_dir(), Path(app.srcdir, "reference/config"))
    )
    return {"parallel_read_safe": True}
