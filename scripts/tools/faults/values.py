"""Damages values and files by generator: what JSON, YAML, pictures and weights can hold wrongly."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**12, -(10**400), 1e308, -0.5, float("nan"), float("inf"), "", "hot", "\ud800",
    "../../x", "a\0b", "x" * 100_000, [], {}, [[]], {"a": {}}, [None], [1, "a"], 2**63, "<script>", "$a$ $b$")
DEEP = "[" * 5000 + "]" * 5000
WHOLE = {  # of a whole text file
    "empty": b"", "a list": b"[]", "a number": b"5", "a text": b'"x"', "null": b"null", "NaN": b"NaN",
    "random bytes": bytes(random.Random(0).randbytes(64)), "zeros": bytes(64),
    "no UTF-8": b'{"a": "caf\xe9"}', "deep": DEEP.encode(), "a lone surrogate": b'{"a": "\\ud800"}',
    "digits": b"1" * 5000, "cut": b'{"a": [1, 2',
    "UTF-32": '{"a": 1}'.encode("utf-32")}
YAML_ONLY = {
    "tags of Python": b"a: !!python/object/apply:os.system [id]", "a circle": b"a: &a [*a]",
    "a billion laughs": b"a: &a [x]\n" + b"".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n".encode()
        for n in range(20)),
    "keys that are no texts": b"1: 2\n? [1]\n: 3", "dates": b"a: 2026-11-27", "tabs": b"a:\tb\n\tc: d",
    "hexadecimal digits": b"a: 0x" + b"f" * 9000}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value inside `value`, as keys and numbers; of long lists the first two."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(
        value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def with_odd_value(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """Return a copy of `value` with `odd` at a place."""
    changed = copy.deepcopy(value)
    inside = changed
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = odd
    return changed


def without(value: Any, at: tuple[Any, ...]) -> Any:
    """Return a copy of `value` that lacks what stands at a place."""
    changed = copy.deepcopy(value)
    inside = changed
    for key in at[:-1]:
        inside = inside[key]
    del inside[at[-1]]
    return changed


Damage = tuple[str, Callable[[Path], None]]  # in words, and what does it to a file


def damages_of_text(value: Any, rng: random.Random, count: int, is_yaml: bool = False) -> Iterator[Damage]:
    """Yield `count` damages of a file that holds `value` as JSON, and that is replaced by them."""
    sites = list(places(value))
    whole = {**WHOLE, **(YAML_ONLY if is_yaml else {})}
    for _ in range(count):
        kind = rng.random()
        if kind < 0.25 or not sites:
            name = rng.choice(list(whole))
            yield f"is {name}", writes(whole[name])
        elif kind < 0.35:
            at = rng.choice(sites)
            yield f"without {_named(at)}", writes(json.dumps(without(value, at)).encode())
        elif kind < 0.40:
            yield "with an unknown key", writes(json.dumps(
                {**value, "unknown": 1} if isinstance(value, dict) else [value]).encode())
        elif kind < 0.43:
            yield "is a folder", _as_folder
        else:
            at, odd = rng.choice(sites), rng.choice(ODD_VALUES)
            yield f"{_named(at)} is {odd!r:.40}", writes(json.dumps(with_odd_value(value, at, odd)).encode())


def damages_of_bytes(rng: random.Random, count: int) -> Iterator[Damage]:
    """Yield `count` damages of a binary file."""
    for _ in range(count):
        name = rng.choice(("empty", "cut", "random", "zeros", "flipped", "a folder", "a link to nowhere"))
        seed = rng.random()
        yield f"is {name}", _of_bytes(name, random.Random(seed))


def _of_bytes(name: str, rng: random.Random) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if name == "a folder":
            return _as_folder(path)
        if name == "a link to nowhere":
            path.unlink()
            return path.symlink_to("nowhere")
        if name == "flipped":
            for _ in range(20):
                data[rng.randrange(min(len(data), 2000))] = rng.randrange(256)
        made = {"empty": b"", "cut": bytes(data[:rng.randrange(len(data))]), "random": rng.randbytes(2000),
                "zeros": bytes(len(data)), "flipped": bytes(data)}[name]
        return writes(made)(path)

    return damage


def writes(data: bytes) -> Callable[[Path], None]:
    """Return what replaces a file by `data`; the file may be a link to one that others use."""
    def damage(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    return damage


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _named(at: tuple[Any, ...]) -> str:
    return ".".join(map(str, at))
