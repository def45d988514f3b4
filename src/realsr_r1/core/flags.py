"""The parser of a command's flags: what is wrong with them is one line, as for any other bad input.

The commands whose settings are TRL's have its parser (core/settings.py), and share the check for
unknown flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from realsr_r1.core.errors import UserError, meant


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse prints its usage and ends the process.

    Flags have to be written in full, so that a new flag doesn't change what a command line means.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None,  # type: ignore[override]
                   namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """Parse as argparse does, after a look for unknown flags: one of them, mistyped, may be
        the very flag that is missing."""
        args = sys.argv[1:] if args is None else args
        refuse_unknown(self, args)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with argparse's own words."""
        raise UserError(f"{message}; {self.prog} --help says what it takes")


def refuse_unknown(parser: argparse.ArgumentParser, argv: Iterable[str]) -> None:
    """Raise `UserError` for the first word of `argv` that looks like a flag and is none."""
    for word in argv:
        if word == "--":
            return
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in parser._option_string_actions:
            raise UserError(f"unknown flag {flag}{meant(flag, parser._option_string_actions)}; {parser.prog} "
                            "--help lists them")
