"""Pairs photos with their tag and description files, and says of each item that doesn't pair why not.

Formats: photo NAME.jpg has tags NAME.txt (comma-separated, UTF-8) and descriptions NAME.json with the texts rough,
middle and final. Opens no photo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realsr_r1.errors import UserError
from realsr_r1.images import list_images

DESCRIPTION_KEYS = ("rough", "middle", "final")


@dataclass(frozen=True)
class BadItem:
    """A file that can't be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Photo:
    """A photo and what is known of it: `extra` holds `tag` (list of texts) and, if asked for, `descriptions`."""

    path: Path
    extra: dict[str, Any]


def pair_photos(images: Path, tags: Path, descriptions: Path | None) -> tuple[list[Photo], list[BadItem]]:
    """The photos of the folder `images` that have their sidecars, sorted by name, and the items that are bad."""
    photos, bad = [], []
    paths: dict[str, Path] = {}
    for path in list_images(images):
        if path.stem in paths:
            bad.append(BadItem(path.name, f"{paths[path.stem].name} has the same name, and so the same sidecars"))
        else:
            paths[path.stem] = path
    for stem, path in paths.items():
        try:
            extra: dict[str, Any] = {"tag": read_tags(tags / f"{stem}.txt")}
            if descriptions is not None:
                extra["descriptions"] = read_descriptions(descriptions / f"{stem}.json")
            photos.append(Photo(path, extra))
        except UserError as error:
            bad.append(BadItem(path.name, str(error)))
    for folder, suffix, kind in ((tags, ".txt", "tag"), (descriptions, ".json", "description")):
        for sidecar in sorted(folder.glob(f"*{suffix}")) if folder is not None else ():
            if sidecar.stem not in paths and not sidecar.name.startswith("."):
                bad.append(BadItem(sidecar.name, f"{kind} file {sidecar} has no image {sidecar.stem}.* in {images}"))
    return photos, bad


def read_tags(path: Path) -> list[str]:
    """The tags of one photo, in their order, without empty ones. Raises `UserError` that names the file."""
    if not path.is_file():
        raise UserError(f"no tag file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"tag file {path} is not UTF-8 text ({error})") from error
    return [" ".join(tag.split()) for tag in text.split(",") if tag.strip()]


def read_descriptions(path: Path) -> list[str]:
    """The rough, middle and final description of one photo. Raises `UserError` that names the file and the key."""
    if not path.is_file():
        raise UserError(f"no description file {path}")
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"description file {path} is not valid JSON ({error})") from error
    for key in DESCRIPTION_KEYS:
        value = texts.get(key) if isinstance(texts, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"description file {path} has no text under the key {key!r}")
    return [texts[key].strip() for key in DESCRIPTION_KEYS]
