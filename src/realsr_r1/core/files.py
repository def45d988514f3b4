"""Writes files and folders whole or not at all. Errors name the file.

Everything is written under a temporary name beside its target and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.presets import built_in
from realsr_r1.core.schema import Json, Text
from realsr_r1.core.texts import escaped, is_text

TRIAL = ".realsr-r1-"  # prefix of folders that are made only to see whether a folder can be made
CARD_FILE = "README.md"  # of an exported folder, for people; nothing reads its weights by it
NOTE = "made_from.json"  # in an unfinished folder: what it is being made from


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it is renamed to `path`, else removed.

    Where `path` is a link, the file that it leads to is replaced. Raises `UserError` where it is a
    device, a pipe or a socket: root could replace /dev/null itself.
    """
    path = _file_itself(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, f"{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`. On success it replaces `path`, else it is removed.

    Where `path` is a link, the folder that it leads to is replaced.
    """
    path = _folder_itself(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, f"{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    old = _beside(path, f"{os.getpid()}.old")
    try:
        yield partial
        open_to_others(partial)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _file_itself(path: str | Path, flag: str | None = None) -> Path:
    """Return `path`, or the file that it leads to. Raises `UserError` where it is no regular file."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file{f' (given by {flag})' if flag else ''}; give another "
                        "name")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _beside(path: Path, kind: str) -> Path:
    """Return the path of a hidden file or folder beside `path`: a dot, its name and `kind`.

    A long name is shortened, for file systems take 255 bytes.
    """
    name = path.name
    if len(os.fsencode(name)) + len(kind) > 250:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{kind}")


def _folder_itself(path: str | Path) -> Path:
    """Return `path` where it has a name of its own, else the folder that it leads to (a link, `.`).

    Raises `UserError` where it is something else than a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is not a folder; give another name")
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


@contextlib.contextmanager
def resumable_folder(path: str | Path, made_from: Any, done_file: str) -> Iterator[Path]:
    """Yield a working folder beside `path`, which becomes `path` on success.

    After an exception or a crash the working folder stays. A later call with an equal `made_from`
    (plain JSON values) yields it again with what it holds; a call with another `made_from` begins
    with an empty one. The last thing that the caller writes into it is `done_file`, which says
    that the folder is complete. Raises `UserError` when another process works on the same folder.
    """
    path = _folder_itself(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work, old = _beside(path, "making"), _beside(path, "old")
    note = work / NOTE
    with _locked(_beside(path, "lock")):
        if not _is_noted(note, made_from):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            write_json(note, made_from)
        for partial in work.glob(".*.partial"):  # what a killed process was writing
            partial.unlink()
        yield work
        if not (work / done_file).is_file():
            raise AssertionError(f"{done_file} was not written")
        open_to_others(work)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(work, path)
    clear_leftovers(path)


def _is_noted(note: Path, made_from: Any) -> bool:
    """Whether `note` holds `made_from`. A crash of the machine may have left the note empty."""
    try:
        return note.is_file() and read_json(note, Json) == made_from
    except UserError:
        return False


def clear_leftovers(path: Path) -> None:
    """Remove what `resumable_folder` may leave behind: the replaced folder, the note, the lock.

    Call it when `path` is complete. Does nothing while another process works on the folder.
    """
    path = _folder_itself(path)
    note, old, lock = path / NOTE, _beside(path, "old"), _beside(path, "lock")
    if any(leftover.exists() for leftover in (note, old, lock)):
        # in use, or a disk that is read-only now
        with contextlib.suppress(UserError, OSError), _locked(lock):
            shutil.rmtree(old, ignore_errors=True)
            note.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the system releases it when this process ends, even if it is killed.

    Raises `UserError` when another process holds it.
    """
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing {path.name[1:-5]} in {path.parent}; wait for it, or "
                            "end it") from error
        except OSError:
            pass  # a network disk without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def open_to_others(folder: Path) -> None:
    """Give all files below `folder` the mode that the user's umask gives to new files.

    (safetensors writes files that only their owner may read.)
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented UTF-8 JSON, atomically.

    Names that aren't UTF-8 (a file system allows them) are written with JSON's own escapes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with atomic_file(path) as partial:
        partial.write_text((text if is_text(text) else json.dumps(value, indent=2)) + "\n", encoding="utf-8")


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises `UserError` where it can't be read."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give another file") from error


def check_replaced(path: Path, made_from: dict[str, Any], overwrite: bool) -> None:
    """Raise `UserError` where `path` has a result that was made from something else, or no result.

    `made_from`: what the new result keeps under this name. `overwrite`: it may be replaced.
    """
    if overwrite or not path.exists():
        return
    try:
        held = read_json(path, dict[Text, Json])
    except UserError:
        held = None
    if held is None or held.get("made_from") != made_from:
        raise UserError(f"{path} is there, and holds something else; give another --output, or --overwrite "
                        "to replace it")


def existing_folder(path: str | Path, flag: str, what: str = "folder") -> Path:
    """`path`, which is an existing folder. Else raises `UserError` that names it and its flag.

    `what`: what kind of folder is asked for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such {what}: {path} (given by {flag}){built_in(flag)}")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder (given by {flag})")
    return path


def check_new_file(path: str | Path, flag: str, example: str) -> None:
    """Raise `UserError` unless a file can be written at `path`. `example`: the name of such a file."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder (given by {flag}); {flag} takes the name of a file, e.g. "
                        f"{Path(path) / example}")
    check_new_folder(_file_itself(path, flag).absolute().parent, flag)


def check_new_folder(path: str | Path, flag: str) -> None:
    """Raise `UserError` unless `path` can be made, or is a folder that can be written to.

    The message names `path` and its flag. A folder is made and removed to find out, because the
    rights alone don't tell of a read-only disk, of /proc or of too long a name.
    """
    if not str(path):
        raise UserError(f"{flag} is empty; give a folder")
    if not is_text(str(path)):
        raise UserError(f"{escaped(str(path))} (given by {flag}) is not UTF-8 text; give another name")
    path = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)  # raises for a name that can't be one
        place = path.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{place} is not a folder (given by "
                            f"{flag}{'' if place == path.absolute() else f' {path}'})")
        with tempfile.TemporaryDirectory(prefix=TRIAL, dir=place):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} (given by {flag}) can't be written ({reason}); give another "
                        "folder") from error
