"""Reads tags, texts and names as people and programs write them: the project's only reader of those.

Tags are divided at commas, semicolons, bars, line ends and tabs, and at the Chinese forms of these
marks. Text files are UTF-8 or, where they begin with its mark, UTF-16 (what Windows calls Unicode).
Names are compared in Unicode's composed form (NFC), since macOS writes the
same name decomposed (NFD). Knows nothing of chains: chain/checks.py says what may stand in one.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.presets import built_in

# What is read, as help and README say it.
READ_TAGS = ("Tags are divided by commas, semicolons, bars (|), tabs and line ends; text and JSON files are "
             "UTF-8, with or without BOM, or UTF-16 with it.")
# Bars beside angle brackets belong to special tokens such as <|image|>, which are refused as a whole.
_BETWEEN_TAGS = re.compile("[,;\n\r\t\v\f\x85\u2028\u2029，；｜、]|(?<!<)\\|(?!>)")
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def split_tags(value: str | Iterable[object]) -> list[str]:
    """Return tags in their order, composed and with single spaces; empty ones are left out.

    `value`: a text with one or several tags, or several such texts. What isn't a text is left out.
    """
    values = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else []
    texts = [text for text in values if isinstance(text, str)]
    parts = [part for text in texts for part in _BETWEEN_TAGS.split(text)]
    return [tag for part in parts if (tag := " ".join(composed(part).split()))]


def split_list(text: str) -> list[str]:
    """Return the items of a comma-separated text, without outer white space and empty ones."""
    return [item for part in text.split(",") if (item := part.strip())]


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, without outer white space and empty ones."""
    return [line for part in text.splitlines() if (line := part.strip())]


def decoded_text(data: bytes, where: str) -> str:
    """Return the text that a file holds: UTF-8, with or without its mark, or UTF-16 with its mark.

    Raises `UserError` that names the file by `where`.
    """
    name = "utf-16" if data.startswith(_UTF_16_MARKS) else "utf-8-sig"
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not {'UTF-16' if name == 'utf-16' else 'UTF-8'} text ({error}); save it "
                        "as UTF-8") from error


def read_text(path: Path, flag: str | None = None) -> str:
    """Read a text file of the user's, as `decoded_text` does.

    `flag`: the flag that gave it, for messages. Raises `UserError` that names a file which is missing
    or no text.
    """
    given = f" (given by {flag})" if flag else ""
    if not path.is_file():
        raise UserError(f"no such file: {path}{given}{built_in(flag)}")
    return decoded_text(content_of(path), f"{path}{given}")


def content_of(path: Path) -> bytes:
    """Return the bytes of a file of the user's. Raises `UserError` where it opens, but can't be read.

    That is so for some files of /proc, and on a disk with faults.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.filename is not None:  # it didn't open, and `errors.run` says why
            raise
        raise UserError(f"{path} can't be read ({error.strerror}); give another file") from error


def is_text(value: Any) -> bool:
    """Whether `value` is a string that UTF-8 can hold.

    Names of files, JSON files and models' answers may hold halves of surrogate pairs, which it
    can't.
    """
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def escaped(text: str) -> str:
    """`text` with each character that UTF-8 can't hold written as a backslash escape."""
    return text.encode(errors="backslashreplace").decode()


def composed(text: str) -> str:
    """Return `text` in the form in which names and tags are compared (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


def stem_of(name: str) -> str:
    """Return a file's name, with its folders, without its last suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def same_named(path: Path) -> Path:
    """Return `path`, or, where it doesn't exist, the file there whose composed name is the same.

    The folders on the way are found in the same way. Returns `path` where there is none.
    """
    if path.exists() or path.parent == path:
        return path
    folder = same_named(path.parent)
    return next(_called(folder, composed(path.name)), folder / path.name)


def _called(folder: Path, name: str) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if composed(path.name) == name)
