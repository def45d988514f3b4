"""Fills in the HTML templates that lie beside a package's code.

Every text is escaped by the engine, whatever it is and wherever it comes from. What isn't escaped
is `Markup`, of our own making: a style sheet, a chart as matplotlib draws it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def _environment(package: str) -> Environment:
    return Environment(loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)


def template(package: str, name: str) -> Template:
    """Return the template in the file `name` of the folder `templates` of a package."""
    return _environment(package).get_template(name)


def fragment(package: str, name: str, macro: str, *values: Any) -> str:
    """Return the HTML that a macro of a template makes of values."""
    return str(getattr(template(package, name).module, macro)(*values))
