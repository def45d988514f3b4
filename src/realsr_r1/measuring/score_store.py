"""Keeps scores that were computed, in a file of JSON lines, so that a stopped evaluation goes on.

A score is found again by what it was computed from: the metric with its settings, and the content of
the files, wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file, content_hash
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.schema import Number, Text, TypedDict


class Line(TypedDict):
    """A line of the file."""

    key: Text
    value: Number | None


class ScoreStore:
    """The scores in the file `path`, which is made when the first score is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, float | None] = {}
        self._hashes: dict[Path, str] = {}  # of the files that were asked for, each of which is read once
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        self._is_whole = not lines or lines[-1].endswith(b"\n")  # no crash cut off its last line
        for line in lines:
            try:
                found = parsed_json(line, str(path), Line)
            except UserError:
                self._is_whole = False
            else:
                self._values[found["key"]] = found["value"]

    def key(self, made_with: Any, files: Sequence[Path]) -> str:
        """Return the name of a score. `made_with`: JSON values; `files`: what was compared."""
        for path in files:
            if path not in self._hashes:
                self._hashes[path] = content_hash(path)
        parts = [made_with, [self._hashes[path] for path in files]]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def known(self, keys: Sequence[str]) -> list[float | None] | None:
        """Return the scores of these names, or None where one of them isn't known.

        So a batch is scored as a whole or not at all, and comes out the same when it is repeated.
        """
        return [self._values[key] for key in keys] if all(key in self._values for key in keys) else None

    def add(self, keys: Sequence[str], values: Sequence[float | None]) -> None:
        """Keep scores, so that they are found after a crash, too."""
        self._values.update(zip(keys, values, strict=True))
        if not self._is_whole:
            self._write_anew()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(_line(key, value) for key, value in zip(keys, values, strict=True))

    def _write_anew(self) -> None:
        with atomic_file(self.path) as partial:
            partial.write_text("".join(_line(*item) for item in self._values.items()), encoding="utf-8")
        self._is_whole = True


def _line(key: str, value: float | None) -> str:
    return json.dumps({"key": key, "value": value}) + "\n"
