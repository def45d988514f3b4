"""Fills in the templates that lie beside a package's code: HTML, Markdown and LaTeX.

Every text is quoted by the engine, whatever it is and wherever it comes from, as the file's suffix
asks for. What isn't quoted is `Markup`, of our own making: a style sheet, a chart as matplotlib draws
it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, Undefined
from markupsafe import Markup

_LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
          **{mark: f"\\{mark}" for mark in "$&#_%"}}


def _markdown(value: Any) -> Any:
    """Return a text that Markdown shows as it is, in one line."""
    if isinstance(value, (Markup, Undefined)):
        return value
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", " ".join(str(value).split()))
    # What would begin a list, a heading, a rule or a quotation.
    text = re.sub(r"^(\d*)(?=[.)](?:\s|$))|^(?=[-+#=]+(?:\s|$)|>)", r"\1\\", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _latex(value: Any) -> Any:
    """Return a text that LaTeX shows as it is, in one line."""
    if isinstance(value, (Markup, Undefined)):
        return value
    return "".join(_LATEX.get(mark, mark) for mark in " ".join(str(value).split()))


_QUOTES = {".md": _markdown, ".tex": _latex}


@cache
def _environment(package: str, suffix: str) -> Environment:
    return Environment(loader=PackageLoader(package), autoescape=suffix == ".html",
                       finalize=_QUOTES.get(suffix), undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True)


def template(package: str, name: str) -> Template:
    """Return the template in the file `name` (.html, .md, .tex) of the folder `templates` of a package."""
    return _environment(package, PurePath(name).suffix).get_template(name)


def fragment(package: str, name: str, macro: str, *values: Any) -> str:
    """Return the HTML that a macro of a template makes of values."""
    return str(getattr(template(package, name).module, macro)(*values))
