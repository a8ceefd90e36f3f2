"""Sphinx's settings for the site; ``make site`` puts the pages in place first (experiments/publishing/site.py)."""

import re

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from context_diffusion import __version__

project = "context_diffusion"
author = copyright = "the context_diffusion authors, MIT licence"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]

# --- pages -----------------------------------------------------------------------------------------------
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
myst_enable_extensions = ["amsmath", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the lessons come with their outputs
nb_merge_streams = True
nb_code_prompt_show = "The first cell of every lesson"  # the only one that is folded
nb_code_prompt_hide = "Fold it again"
suppress_warnings = [
    "myst.header",  # a lesson may leave a level of headings out
    "mystnb.unknown_mime_type",  # text stands beside them
    "docutils",  # docstrings are plain sentences: a star in one is a star
]

# --- the reference -----------------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
nitpicky = False

# --- how it looks: nothing from elsewhere -------------------------------------------------------------------
html_theme = "furo"
html_title = "context_diffusion"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
mathjax_path = "mathjax/tex-mml-chtml.js"
mathjax3_config = {"tex": {"tags": "none"}, "options": {"enableMenu": False}}  # the menu would ask for more scripts
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#9a3412", "color-brand-content": "#9a3412"},
    "dark_css_variables": {"color-brand-primary": "#fdba74", "color-brand-content": "#fdba74"},
}


def setup(app: Sphinx) -> None:
    """Mend what would be set wrongly: signs in docstrings, formulas of several lines. ``layers`` is no language."""
    app.connect("autodoc-process-docstring", lambda app, what, name, found, options, lines: keep_signs(lines))
    app.connect("doctree-resolved", lambda app, tree, page: keep_formulas(tree))
    app.add_lexer("layers", TextLexer)


def keep_signs(lines: list[str]) -> None:
    """Escape what is markup in reStructuredText and a plain sign in our docstrings: ``|dx|``, ``V_-i``, a lone star."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [
            re.sub(r"\||(?<=\w)_(?!\w)|(?<![*\w])\*(?=[\w,)])(?![^*]*\*)", r"\\\g<0>", part) for part in parts[::2]
        ]
        lines[number] = "``".join(parts)


def keep_formulas(tree: nodes.document) -> None:
    """Hand formulas to MathJax as they are written: around lines of its own Sphinx would put a second environment."""
    for formula in tree.findall(nodes.math_block):
        if not formula.get("no-wrap"):
            formula["no-wrap"] = True
            formula.children = [nodes.Text(f"\\[{formula.astext()}\\]")]
