"""The project's only reader of JSON and YAML. Errors name the file and what is wrong in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.schema import checked
from realsr_r1.core.texts import content_of, decoded_text, read_text

MOST_JSON, MOST_YAML = 2**31, 2**20  # bytes of a file; a list of a million records has some hundred MiB
MOST_VALUES = 10**6  # in a YAML file, its aliases written out


def read_json(path: str | Path, form: Any, way: str = "") -> Any:
    """Read a JSON file of the form `form` (core/schema.py).

    `way`: the way out where it has another form. Raises `UserError` that names the file when it is
    missing, is not JSON or has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    _check_size(path, MOST_JSON)
    return parsed_json(content_of(path), str(path), form, way)


def parsed_json(data: bytes | str, where: str, form: Any, way: str = "") -> Any:
    """Return the value of JSON: a file's bytes (as `decoded_text` reads them), or a text.

    Raises `UserError` that names it by `where` when it is not JSON, or not of the form `form`.
    """
    text = data if isinstance(data, str) else decoded_text(data, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also endless digits, endless brackets
        raise UserError(f"{where} is not valid JSON ({error}){f'; {way}' if way else ''}") from error
    return checked(form, value, where, way)


def read_yaml(path: str | Path, form: Any, flag: str | None = None, way: str = "") -> Any:
    """Read a YAML file (JSON is YAML, too) of the form `form` (core/schema.py).

    Raises `UserError` that names the file, and the flag it came from, when it is missing, broken or
    of another form.
    """
    path = Path(path)
    if path.is_file():
        _check_size(path, MOST_YAML)
    return parsed_yaml(read_text(path, flag), f"{path}{f' (given by {flag})' if flag else ''}", form, way)


def parsed_yaml(text: str, where: str, form: Any, way: str = "") -> Any:
    """Return the value of a YAML text. Raises `UserError` that names it by `where` when it is none."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise ValueError("its aliases stand for more than a file could hold")
        value = None if node is None else loader.construct_document(node)
    except Exception as error:  # PyYAML lets through what Python raises on odd numbers, dates and keys
        raise UserError(f"{where} is not valid YAML ({error})") from error
    return checked(form, value, where, way)


def _written_out(node: Any, known: dict[int, float]) -> float:
    """Return the number of values that a YAML node stands for where its aliases are written out."""
    if id(node) not in known:
        known[id(node)] = math.inf  # an alias inside of what it stands for
        parts = node.value if isinstance(node.value, list) else []
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    return known[id(node)]


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path} has {size / 2**20:,.0f} MiB; such a file may have {most / 2**20:,.0f} MiB")
