"""Sphinx configuration, and the directive that lists a backend's options."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from events_core.options import CommonOptions, OptionInfo, describe_options

project = "events-core"
copyright = "the events-core authors"
version = release = version_of("events-core")
sys.path.insert(0, str(Path(__file__).parent / "extensions"))
from repository import footer_icons  # noqa: E402

extensions = ["sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx_copybutton", "guarantees", "rules"]
html_theme = "furo"
html_theme_options = {"footer_icons": footer_icons(Path(__file__).parent)}
html_title = f"events-core {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
"""The buttons copy what follows the prompt, and no output."""
nitpicky = True
nitpick_ignore_regex = [
    # Annotations that Sphinx cannot resolve: type variables, and names of private or third-party modules.
    ("py:class", r".*(_Sized|T|Unpack|ConfigOverrides|TracebackType|Abstract(Async)?ContextManager)$"),
    (
        "py:(class|data|attr|obj)",
        r"(collections\.abc|typing|asyncio|datetime|enum|attrs?|os|pathlib|threading|types|websockets|_io|sqlite3|opentelemetry)\b.*",
    ),
    ("py:class", r"(Mapping|Sequence|Iterable|AsyncIterator|Callable|Collection|Any|Literal|Self|State)\b.*"),
    ("py:(class|exc)", r"(ValueError|RuntimeError|ConnectionError|Exception|TypeError|UnicodeDecodeError)"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
intersphinx_mapping: dict[str, tuple[str, None]] = {}
exclude_patterns = ["_build"]


class BackendOptions(SphinxDirective):
    """``.. backend-options:: package.module:OptionsClass`` lists the options that a class adds to the common ones.

    The common ones themselves are listed for ``events_core.options:CommonOptions``.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        options_class: type[CommonOptions] = getattr(import_module(module), name)
        common = {} if options_class is CommonOptions else {info.name: info for info in describe_options(CommonOptions)}
        shown = [info for info in describe_options(options_class) if info != common.get(info.name)]
        lines = [line for info in shown for line in _described(info)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), 0, container)
        return container.children


def _described(info: OptionInfo) -> list[str]:
    default = "required" if info.default is None else f"default ``{info.default}``" if info.default else "unset"
    facts = [info.type, default, info.unit, info.range, "secret" if info.secret else ""]
    return [f"``{info.name}`` ({', '.join(fact for fact in facts if fact)})", f"   {info.help}", ""]


def _trim_code(app: Sphinx, doctree: nodes.document) -> None:
    """Remove the blank lines at the end of each block: a part of a file has those that separate it from the next."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = block.astext().rstrip("\n")
        block[:] = [nodes.Text(block.rawsource)]


def _mark_options(app: Sphinx, doctree: nodes.document) -> None:
    """Give options of a command a class of their own: a browser would break them after a hyphen."""
    for literal in doctree.findall(nodes.literal):
        if literal.astext().startswith("-"):
            literal["classes"].append("option")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("backend-options", BackendOptions)
    app.connect("doctree-read", _trim_code)
    app.connect("doctree-read", _mark_options)
