"""Tags and descriptions of photos, read from files.

They lie in one file for each photo, in one JSON line for each photo, or beside the photo in its tar
or dataset row. NAME.txt holds tags, NAME.json a text for each level of the chain's descriptions
(rough, middle and final in the published chain); for NAME.jpg both may be called NAME.jpg.txt and
NAME.jpg.json, too. A JSON line names its photo under `image` (or `file_name`) and holds `tag`
(a list, or one text) and a key for each level (or `descriptions`, a list of them). A sample of a tar
has KEY.txt and KEY.json, and a row of a dataset has the columns `tag` and `descriptions`. What
divides tags and which encodings are read is in core/texts.py. This module opens no photo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from realsr_r1.chain.checks import check_text
from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.schema import Json
from realsr_r1.core.texts import composed, decoded_text, escaped, is_text, split_tags, stem_of
from realsr_r1.data.degradation.degrade import LABEL_ITEMS, RESIZES
from realsr_r1.data.degradation.degrade import LEVELS as DEGREES
from realsr_r1.data.photos.sources import FilePlace, Item, Photo, RowPlace, walk

LEVELS = ChainSpec.published().levels  # levels of descriptions, where no other chain is asked for
# The most tags of one photo. RAM++ gives some tens; thousands don't describe what a photo shows.
MOST_TAGS = 200
LOOKED_AT = 100  # photos of a tar or dataset that are looked at to see whether they have tags
KINDS = {"tag": ".txt", "description": ".json"}


# --- Checks of values; `where` names the file and the line in it ---

def checked_tags(value: Any, where: str) -> list[str]:
    """Return clean tags in their order.

    `value`: one text with tags (`split_tags`), or a list of tags or of such texts. Raises `UserError` for
    bad tags, and where there are none.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(map(is_text, texts)):
        raise UserError(f"{where} has no tags: a list of texts, or one text")
    tags = split_tags(texts)
    if not tags:
        raise UserError(f"{where} is empty: it names no tag")
    if len(tags) > MOST_TAGS:
        raise UserError(f"{where} has {len(tags)} tags; a photo has at most {MOST_TAGS}")
    for tag in tags:
        check_text(tag, "tag", where)
    return tags


def checked_descriptions(value: Any, where: str, levels: Sequence[str] = LEVELS) -> list[str]:
    """Return the text for each of a chain's `levels`, in order.

    `value`: an object with a text for each level (or `descriptions`, a list of them). Raises
    `UserError` that names the text which is missing or can't stand in a chain.
    """
    if isinstance(value, dict) and isinstance(value.get("descriptions"), (list, tuple)):
        value = value["descriptions"]
    if isinstance(value, (list, tuple)):
        if len(value) != len(levels):
            raise UserError(f"{where} has {len(value)} descriptions; the chain has the levels "
                            f"{', '.join(levels)}")
        value = dict(zip(levels, value))
    for key in levels:
        text = value.get(key) if isinstance(value, dict) else None
        if not is_text(text) or not text.strip():
            raise UserError(f"{where} has no text under the key {key!r}")
        check_text(text, "description", where)
    return [composed(value[key].strip()) for key in levels]


def checked_labels(value: Any, where: str) -> list[str]:
    """Return the five labels of a degradation, as the data that is degraded here has them.

    They come in the order of `LABEL_ITEMS`: a level and the item's name (`light blur`), or for the
    two resizes one word. Raises `UserError` that names the label which is missing or another one.
    """
    if not isinstance(value, (list, tuple)) or len(value) != len(LABEL_ITEMS):
        raise UserError(f"{where} has no {len(LABEL_ITEMS)} labels: {', '.join(LABEL_ITEMS)}")
    labels = []
    for item, label in zip(LABEL_ITEMS, value, strict=True):
        known = RESIZES if item.endswith("resize") else tuple(f"{word} {item}" for word in DEGREES)
        found = " ".join(label.lower().split()) if is_text(label) else None
        if found not in known:
            raise UserError(f"{where} has the {item} {str(label)[:60]!r}; it must be one of "
                            f"{', '.join(known)}")
        labels.append(found)
    return labels


# --- Places of values; `read(photo)` returns them or raises UserError ---

@dataclass(frozen=True)
class SidecarFolder:
    """One file for each photo, at the photo's place below `folder`.

    `kind`: a key of `KINDS`. `files`: a photo's name, with or without its suffix -> its file's path
    below `folder`. `twice`: files that stand beside another of the same name (a.txt and a.TXT).
    `levels`: the levels of descriptions.
    """

    folder: Path
    kind: str
    files: dict[str, str]
    twice: tuple[Item, ...] = ()
    levels: tuple[str, ...] = LEVELS

    @classmethod
    def index(cls, folder: Path, kind: str, levels: tuple[str, ...] = LEVELS) -> SidecarFolder:
        """Note the files of `folder`: those with the kind's suffix, in any case."""
        files: dict[str, str] = {}
        twice = []
        for path in walk(folder):
            place = path.relative_to(folder)
            if path.suffix.lower() != KINDS[kind]:
                continue
            name = composed(place.with_suffix("").as_posix())
            if name in files:
                twice.append(Item(path.name, f"{kind} file {path} stands beside {folder / files[name]}, "
                                             "which is about the same photo"))
            files.setdefault(name, place.as_posix())
        return cls(folder, kind, files, tuple(twice), levels)

    def read(self, photo: Photo) -> list[str]:
        own = self.files.get(photo.stem, self.files.get(photo.name))
        path = self.folder / (own or f"{photo.stem}{KINDS[self.kind]}")
        where = f"{self.kind} file {path}"
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"no {where}") from error
        except OSError as error:  # it is a folder, may not be read, or has too long a name
            raise UserError(f"{where} can't be read ({error.strerror})") from error
        if self.kind == "tag":
            return checked_tags(decoded_text(data, where), where)
        return checked_descriptions(parsed_json(data, where, Json), where, self.levels)

    def only(self, photos: Iterable[Photo]) -> SidecarFolder:
        """Return the files of these photos only, small enough to hand to another process."""
        names = [name for photo in photos for name in (photo.name, photo.stem)]
        return replace(self, files={name: self.files[name] for name in names if name in self.files},
                       twice=())

    def orphans(self, photos: Iterable[str], images: str) -> list[Item]:
        """Return the files that belong to none of the photos, and those that are there twice."""
        photos, bad = list(photos), list(self.twice)
        known, stems = _known(photos), set(map(stem_of, photos))
        for name, place in self.files.items():
            stem, path = escaped(name), self.folder / place  # rejected photos are named in the same way
            if stem not in known:
                bad.append(Item(path.name, f"{self.kind} file {path} has no image {stem}.* in {images}"))
            elif stem not in stems and (first := self.files.get(stem_of(name))) is not None:
                bad.append(Item(path.name, f"{self.kind} file {path} stands beside {self.folder / first}, "
                                           "which is about the same photo"))
        return bad


@dataclass(frozen=True)
class JsonLines:
    """One JSON line for each photo.

    `lines`: name of a photo, or name without suffix -> where its line begins (in bytes), and the
    number of the line.
    """

    path: Path
    kind: str
    lines: dict[str, tuple[int, int]]
    rejected: tuple[Item, ...] = ()
    levels: tuple[str, ...] = LEVELS

    @classmethod
    def index(cls, path: Path, kind: str, levels: tuple[str, ...] = LEVELS) -> JsonLines:
        """Read the file once and note where each photo's line is.

        Lines that name no photo are rejected.
        """
        lines: dict[str, tuple[int, int]] = {}
        rejected = []
        start = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"line {number} of {path}"
                try:
                    name = _image_name(parsed_json(line, where, Json), where) if line.strip() else None
                    if name in lines:
                        raise UserError(f"{where} is about {name}, as line {lines[name][1]} is")
                    if name is not None:
                        lines[name] = (start, number)
                except UserError as error:
                    rejected.append(Item(f"{path.name}:{number}", str(error)))
                start += len(line)
        return cls(path, kind, lines, tuple(rejected), levels)

    def read(self, photo: Photo) -> list[str]:
        name = photo.name if photo.name in self.lines else photo.stem
        if name not in self.lines:
            raise UserError(f"{self.path} has no line about {photo.name}")
        start, number = self.lines[name]
        with open(self.path, "rb") as file:
            file.seek(start)
            value = parsed_json(file.readline(), f"line {number} of {self.path}", Json)
        # annotation.py writes this key for a photo that a model failed on.
        if isinstance(value.get("error"), str) and value["error"].strip():
            raise UserError(value["error"])
        where = f"line {number} of {self.path}"
        if self.kind == "label":
            return checked_labels(value.get("degradation"), where)
        return (checked_tags(value.get("tag", value.get("tags")), where) if self.kind == "tag"
                else checked_descriptions(value, where, self.levels))

    def only(self, photos: Iterable[Photo]) -> JsonLines:
        """Return the lines of these photos only, small enough to hand to another process."""
        names = [name for photo in photos for name in (photo.name, photo.stem)]
        return replace(self, lines={name: self.lines[name] for name in names if name in self.lines},
                       rejected=())

    def orphans(self, photos: Iterable[str], images: str) -> list[Item]:
        known, bad = _known(photos), list(self.rejected)
        for name, (_, number) in self.lines.items():
            if name not in known and stem_of(name) not in known:
                reason = f"line {number} of {self.path} is about {name}, which isn't in {images}"
                bad.append(Item(f"{self.path.name}:{number}", reason))
        return bad


def _image_name(value: Any, where: str) -> str:
    name = value.get("image", value.get("file_name")) if isinstance(value, dict) else None
    if not is_text(name) or not PurePosixPath(name).name:
        raise UserError(f"{where} names no photo: it must be an object with the key 'image'")
    return composed(name.removeprefix("./"))


def _known(photos: Iterable[str]) -> set[str]:
    """Names of photos, with and without their suffixes."""
    return {known for name in photos for known in (name, stem_of(name))}


@dataclass(frozen=True)
class Beside:
    """Tags or descriptions that lie in the photo's tar sample, or in its row of a dataset."""

    kind: str
    levels: tuple[str, ...] = LEVELS

    def read(self, photo: Photo) -> list[str]:
        where = f"{photo.name} (its {self.kind}s)"
        if isinstance(photo.place, RowPlace):
            row = photo.place.columns()
            return (checked_tags(row.get("tag", row.get("tags")), where) if self.kind == "tag"
                    else checked_descriptions(row.get("descriptions"), where, self.levels))
        if isinstance(photo.place, FilePlace):
            raise UserError(f"{photo.name} lies in no tar, so nothing says its {self.kind}s")
        text, described = (photo.place.read(KINDS[kind]) for kind in ("tag", "description"))
        value = parsed_json(described, where, Json) if described is not None else {}
        if self.kind == "description":
            return checked_descriptions(value, where, self.levels)
        if isinstance(value, dict) and "tag" in value:
            return checked_tags(value["tag"], where)
        if text is None:
            raise UserError(f"{photo.name} has neither a .txt with tags nor a .json with the key 'tag' "
                            "beside it")
        return checked_tags(decoded_text(text, where), where)

    def only(self, photos: Iterable[Photo]) -> Beside:
        return self

    def orphans(self, photos: Iterable[str], images: str) -> list[Item]:
        return []


Reader = SidecarFolder | JsonLines | Beside


def reader(path: Path | None, kind: str, photos: list[Photo], levels: tuple[str, ...] = LEVELS,
           images: Path | None = None) -> Reader | None:
    """Return a reader of `path` (a folder, or a file of JSON lines).

    Without a path, return a reader of what lies beside the photos, or None. Beside photos that are
    files, those are the files in their folder `images`; of tars and datasets the first `LOOKED_AT`
    photos decide. Tags are read where any of these photos has some. Descriptions are read where at
    least half of them have some, and then photos without are rejected; where fewer have
    descriptions, none are used, and a line says so. `levels`: the levels of descriptions.
    """
    if path is not None:
        form = SidecarFolder if path.is_dir() else JsonLines
        return form.index(path, kind, levels)
    asked = [photo for photo in photos if not isinstance(photo.place, FilePlace)][:LOOKED_AT]
    beside: Reader = Beside(kind, levels)
    if not asked and images is not None and images.is_dir():
        # Texts about no photo, as a licence, are not looked at.
        asked, beside = photos, SidecarFolder.index(images, kind, levels).only(photos)
    having = 0
    for photo in asked:
        with contextlib.suppress(UserError):
            beside.read(photo)
            having += 1
    if having and (kind == "tag" or 2 * having >= len(asked)):
        return beside
    if having:
        print(f"only {having} of the first {len(asked)} photos have {kind}s beside them, so none are used; "
              f"give all by --{kind}s")
    return None
