"""What a folder's files were when it was complete: names, sizes and hashes in its marker.

So a file that was damaged or put there by somebody else is noticed before anything loads it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.schema import Json, Text

MARKER = "complete"
HASH = "sha256"
CODE = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}  # suffixes of pickles
_OF_RANK = re.compile(r"(?:pp_rank_|rng_state_)(\d+)")  # what ranks write for themselves

Manifest = dict[str, tuple[int, str]]  # a file's path in the folder -> its size and hash


def files_of(folder: Path) -> list[str]:
    """Return the paths in `folder` of its files, without marker and hidden ones."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MARKER and not Path(name).name.startswith("."))


def share(names: list[str], rank: int, ranks: int) -> list[str]:
    """Return the files that a rank looks at: those it wrote, which are still in its memory."""
    owners = {name: int(found[1]) if (found := _OF_RANK.search(name)) else 0 for name in names}
    return [name for name in names if owners[name] % ranks == rank]


def hashed(folder: Path, names: list[str]) -> Manifest:
    """Return the sizes and hashes of files in `folder`."""
    manifest = {}
    for name in names:
        with open(folder / name, "rb") as file:
            manifest[name] = (folder / name).stat().st_size, hashlib.file_digest(file, HASH).hexdigest()
    return manifest


def mark(folder: Path, manifest: Manifest) -> None:
    """Write the marker of a complete folder, which holds `manifest`."""
    write_json(folder / MARKER, {"hash": HASH, "files": {name: list(manifest[name])
                                                         for name in sorted(manifest)}})


def read(folder: Path) -> Manifest | None:
    """Return the manifest in a folder's marker; None where it has none, as older versions wrote it.

    Raises `UserError` where the marker is missing or damaged.
    """
    marker = folder / MARKER
    if not marker.is_file():
        raise UserError(f"{marker} is missing")
    data = marker.read_bytes()
    if data.startswith(b"everything that belongs into this folder is written"):
        return None
    note = parsed_json(data, str(marker), dict[Text, Json])
    try:
        return {str(name): (int(size), str(digest)) for name, (size, digest) in note["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{marker} does not list the checkpoint's files") from error


def difference(folder: Path, manifest: Manifest, names: list[str]) -> str | None:
    """Say of the first of `names` that isn't what `manifest` says, what is wrong; None where all are."""
    for name in names:
        path, (size, digest) = folder / name, manifest[name]
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, and was written with {size:,}"
        if hashed(folder, [name])[name][1] != digest:
            return f"{name} is not as it was written"
    return None


def is_whole(folder: Path) -> bool:
    """Whether a folder is complete and all its files are what they were then."""
    try:
        manifest = read(folder)
    except UserError:
        return False
    return manifest is not None and difference(folder, manifest, list(manifest)) is None


def added_pickles(folder: Path, manifest: Manifest) -> list[str]:
    """Return the pickles in `folder` that its manifest doesn't list."""
    return [name for name in files_of(folder) if name not in manifest and Path(name).suffix in CODE]
