"""What a check found: one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from realsr_r1.core.errors import UserError

OK, NOTE, FAULT = "ok", "note", "FAULT"


@dataclass(frozen=True)
class Finding:
    """`mark`: ok, a note (it can be lived with), or a fault. `name`: of the check. `text`: what is so."""

    mark: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.mark:<6} {self.name:<12} {' '.join(self.text.split())}"


def found(name: str, check: Callable[[], str]) -> Finding:
    """Make a check that says what is so, or raises `UserError` with what is wrong."""
    try:
        return Finding(OK, name, check())
    except UserError as error:
        return Finding(FAULT, name, str(error))
