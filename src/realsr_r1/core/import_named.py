"""Finds a user's own function or class by its name, `package.module:name`, and tries it; loads
modules that take seconds.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError, meant

PACKAGE = Path(__file__).parents[1]


def load_module(name: str) -> None:
    """Import a module, and all that it imports, without a search for garbage meanwhile.

    The search goes through hundreds of thousands of new objects again and again and finds next to
    nothing: the GRPO trainer takes 11.5 s of CPU time without it and 14.4 s with it (medians of 4).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(name)
    finally:
        if was_on:
            gc.enable()


def import_named(reference: str, kind: str, known: Sequence[str] | dict[str, Any],
                 others: Sequence[str] = ()) -> Callable[..., Any]:
    """The callable that `package.module:name` stands for.

    Modules in the working directory are found, too. Raises `UserError` when there is no such module
    or callable; `kind` ("expert", "reward") and the `known` names make its message, which names
    those near to `reference` first, with those among `others`, which are too many to list.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (colon and attribute and all(part.isidentifier() for part in module_name.split("."))):
        near = meant(module_name, (*known, *others), most=3)
        raise UserError(f"unknown {kind} {reference!r}{near}; known ones are {', '.join(known)}, or your own "
                        "as package.module:name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module imports one that is missing: the traceback says where
        raise UserError(f"{kind} {reference!r}: there is no module {error.name!r} in the environment or the "
                        f"working directory; built-in ones are {', '.join(known)}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"{kind} {reference!r}: module {module_name!r} has no function {attribute!r}")
    return found


def tried(what: str, call: Callable[[], Any]) -> Any:
    """Return what `call`, which runs a user's function, returns.

    Raises `UserError` where it fails: one line that begins with `what`, and names the place in the
    user's file, or else where it was raised.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise raised(what, error) from error


def raised(what: str, error: Exception) -> UserError:
    """Return the error that `tried` raises for what a user's function raised."""
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [frame for frame in frames if not Path(frame.filename).is_relative_to(PACKAGE)
               and "site-packages" not in Path(frame.filename).parts]
    last = (of_user or frames)[-1]
    return UserError(f"{what} raised {type(error).__name__}: {error} ({last.filename}, line {last.lineno})")
