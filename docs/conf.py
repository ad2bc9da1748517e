"""Sphinx settings of the site: Markdown pages by MyST, the reference from docstrings. `make docs` builds it."""

import re
from importlib.metadata import version as installed
from pathlib import Path

import transformers

import soundwave_hf


transformers.logging.set_verbosity_error()

project = "soundwave-hf"
author = "The soundwave-hf contributors"
version = release = soundwave_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them
autodoc_docstring_signature = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"**": ["globaltoc.html"]}  # all pages; the theme's own sidebar shows those below the current one
html_context = {"default_mode": "auto"}
copyright = f"{author}. Apache-2.0. Built with Sphinx {installed('sphinx')}"

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```(?:\s*$)", re.MULTILINE | re.DOTALL)


def as_rst(markdown: str) -> str:
    """A docstring of this package, which is Markdown as in transformers, in the form that autodoc reads."""

    def code_block(match: re.Match) -> str:
        margin, language, code = match.groups()
        lines = [f"{margin}    {line[len(margin) :]}" if line.strip() else "" for line in code.splitlines()]
        head = f"{margin}.. code-block:: {'pycon' if '>>>' in code else language or 'text'}"
        return "\n".join([head, "", *lines, ""])

    parts = FENCE.split(markdown)  # text, margin, language, code, text ...
    text = [re.sub(r"(?<!`)`(?!`)([^`\n]+?)(?<!`)`(?!`)", r"``\1``", part) for part in parts[::4]]
    text = [re.sub(r"\[(``[^`]+``)\](?!\()", r"\1", part) for part in text]
    text = [re.sub(r"\[([^]`]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", part) for part in text]
    blocks = [code_block(match) for match in FENCE.finditer(markdown)]
    return "".join(part for pair in zip(text, [*blocks, ""], strict=True) for part in pair)


def convert(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = as_rst("\n".join(lines)).splitlines()


def outside(app, docname: str, source: list[str]) -> None:
    """Links to Markdown files outside of docs become downloads: the site has no page of them."""
    folder = (Path(app.srcdir) / docname).parent

    def download(match: re.Match) -> str:
        label, target = match.groups()
        inside = (folder / target).resolve().is_relative_to(Path(app.srcdir).resolve())
        return match[0] if inside else f"{{download}}`{label} <{target}>`"

    source[0] = re.sub(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+\.md)\)", download, source[0])


def setup(app):
    app.connect("autodoc-process-docstring", convert, priority=400)  # napoleon, which reads `Args:`, has 500
    app.connect("source-read", outside)
