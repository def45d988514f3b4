"""What JSON and YAML files may hold: forms, and the one check that compares a value with its form.

A form is a type: `dict[Text, Number]`, say, or a `TypedDict` of a file's keys, `closed=True` where
it has no others, `extra_items=Json` where it has. pydantic does the checking, strictly: no text
counts as a number, and no truth value either. Every reader in files.py asks for a form, so that no
key is read that nobody has checked. A form lies where its file is read.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from annotated_types import Ge, Gt, Le, Len, MinLen, Predicate
from typing_extensions import TypedDict

from realsr_r1.core.errors import UserError
from realsr_r1.core.texts import escaped, is_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

__all__ = ["Count", "Ge", "Gt", "Json", "Le", "Len", "MinLen", "Number", "Place", "Text", "TypedDict",
           "Variable", "checked", "fields_of", "is_number"]

LARGEST = 1e100  # of a number: its square can be computed, and a sum of many
DEEPEST = 64  # levels of lists and objects in one another, for values of any form


def is_number(value: float) -> bool:
    """Whether a number is finite, and can be computed with."""
    return math.isfinite(value) and abs(value) <= LARGEST


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value is made of objects, lists, texts that UTF-8 can hold, numbers, truths and nulls."""
    if isinstance(value, dict):
        return depth > 0 and all(is_plain(key, 0) and isinstance(key, str) and is_plain(item, depth - 1)
                                 for key, item in value.items())
    if isinstance(value, list):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    if isinstance(value, int):
        return -2**63 <= value < 2**64
    return value is None or isinstance(value, float) or is_text(value)


def is_place(value: str) -> bool:
    """Whether a text is a path that stays below the folder it is looked for in."""
    path = PurePosixPath(value)
    return is_text(value) and bool(path.parts) and "\0" not in value and not path.is_absolute() \
        and ".." not in path.parts


def is_variable(value: str) -> bool:
    """Whether a text can be an environment variable's name or value."""
    return is_text(value) and "\0" not in value and "=" not in value


Text = Annotated[str, Predicate(is_text)]
Variable = Annotated[str, Predicate(is_variable)]
Place = Annotated[str, Predicate(is_place)]
Number = Annotated[float, Predicate(is_number)]
Count = Annotated[int, Ge(0), Le(2**53)]
Json = Annotated[Any, Predicate(is_plain)]  # any value, for a key whose value is only shown or handed on

# pydantic's kinds of errors -> what the value must be, filled in from the error's context.
_WORDS = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "a text",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "keys with values (`key: value`)",
    "none_required": "null", "is_number": "a finite number", "is_text": "a text that UTF-8 can hold",
    "is_place": "a path below its folder", "is_variable": "an environment variable's name or value",
    "is_plain": f"made of texts and numbers, in at most {DEEPEST} levels", "literal_error": "{expected}",
    "greater_than": "above {gt}", "greater_than_equal": "at least {ge}", "less_than": "below {lt}",
    "less_than_equal": "at most {le}", "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}


def checked(form: Any, value: Any, where: str, way: str = "") -> Any:
    """Return `value` as it is, which has the form `form`.

    `where`: names the file, in the error. `way`: the way out, which ends the message. Raises
    `UserError` that names the first place where the value has another form.
    """
    from pydantic import ValidationError

    try:
        _checker(form).validate_python(value, strict=True)
    except ValidationError as error:
        told = _told(error.errors(include_url=False), form, value, where)
        raise UserError(f"{told}; {way}" if way else told) from error
    return value  # not pydantic's copy, whose keys are in the form's order


@cache
@cache
def fields_of(kind: type) -> Any:
    """Return the form of values for a dataclass: its fields, of their types, as keys. None is needed."""
    return TypedDict(kind.__name__, get_type_hints(kind, include_extras=True), total=False, closed=True)


@cache
def _checker(form: Any) -> TypeAdapter:
    from pydantic import TypeAdapter  # takes a tenth of a second, which no command's help needs

    return TypeAdapter(form)


def _told(errors: Sequence[ErrorDetails], form: Any, value: Any, where: str) -> str:
    """Say in one line what is wrong at the place of the first error, and what may stand there."""
    place, found = _place(errors[0], value)
    at = "".join(f"[{key}]" if isinstance(key, int) else f"{'.' if number else ''}{escaped(str(key))}"
                 for number, key in enumerate(place))
    kinds = [error for error in errors if _place(error, value)[0] == place]
    if kinds[0]["type"] == "missing":
        return f"{where}{f': {at}' if at else ''} has no key {kinds[0]['loc'][-1]!r}"
    if kinds[0]["type"] == "extra_forbidden":
        known = "" if at else f"; known are {', '.join(sorted(form.__annotations__))}"
        return f"{where}{f': {at}' if at else ''} has the unknown key {kinds[0]['loc'][-1]!r}{known}"
    shown = _shown(found)
    if kinds[0]["loc"][-1:] == ("[key]",):
        return f"{where}{f': {at}' if at else ''} has the key {shown}; a key must be a text"
    must = " or ".join(dict.fromkeys(map(_must_be, kinds)))
    if not at:
        return f"{where} holds {shown}; it must hold {must}"
    return f"{where}: {at} is {shown}; it must be {must}"


def _place(error: ErrorDetails, value: Any) -> tuple[tuple[Any, ...], Any]:
    """Return an error's place as keys and numbers, and the value there.

    pydantic's own place also has the names of the types that it tried.
    """
    place = []
    for key in error["loc"]:
        keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
        if key in keys and error["type"] != "extra_forbidden":
            value = value[key]
            place.append(key)
    return tuple(place), value


def _must_be(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "predicate_failed":
        kind = error["msg"].split("'")[1]
    return _WORDS[kind].format(**error.get("ctx", {})) if kind in _WORDS else error["msg"]


def _shown(value: Any) -> str:
    try:
        return escaped(reprlib.repr(value))
    except ValueError:  # a whole number of thousands of digits
        return "a very large number"
