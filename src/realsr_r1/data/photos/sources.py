"""Lists the photos of a folder, of webdataset tars, or of a Hugging Face dataset.

A photo's name is its path below the folder, TAR/KEY.SUFFIX in a tar, or its row number in a
dataset; names are in Unicode's composed form, whatever form the disk has. Pictures that are no
photos for us (camera raw, SVG, a JPEG under another suffix) are listed with the reason. No photo is
decoded here: decoding.py does that, and sidecars.py reads the files of tags and descriptions.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from realsr_r1.core.errors import UserError
from realsr_r1.core.pictures import IMAGE_SUFFIXES, why_not_listed, why_unread
from realsr_r1.core.texts import composed, escaped, is_text, stem_of

LONGEST_NAME = 255  # bytes of a file's or folder's name
# The crops of photo a/b.png lie in a folder a/b, which may also hold the folders of photos a/b/*.
CROP_FILE = re.compile(r"\d{5,}-(lq|hq)\.png")
# What the names of the first and the second view of a stereo pair end with, after _ or -.
VIEWS = (("left", "right"), ("l", "r"))


@dataclass(frozen=True)
class FilePlace:
    """A photo that is a file."""

    path: str

    def open(self) -> BinaryIO:
        return open(self.path, "rb")


@dataclass(frozen=True)
class TarPlace:
    """A photo inside a tar.

    `suffix`: of the photo's own file. `members`: suffix of each file of the sample -> (position of
    its first byte in the tar, number of bytes).
    """

    tar: str
    suffix: str
    members: dict[str, tuple[int, int]]

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read(self.suffix) or b"")

    def read(self, suffix: str) -> bytes | None:
        """The bytes of the sample's file with this suffix, or None if there is none.

        For `.txt` also those of KEY.jpg.txt.
        """
        if suffix not in self.members:
            suffix = f"{self.suffix}{suffix}"
        if suffix not in self.members:
            return None
        start, size = self.members[suffix]
        with open(self.tar, "rb") as file:
            if start + size > os.fstat(file.fileno()).st_size:
                raise UserError(f"{self.tar} ends inside this sample")
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True)
class RowPlace:
    """A photo that is a row of a Hugging Face dataset: a folder of save_to_disk, or on the Hub."""

    dataset: str
    split: str
    row: int

    def open(self) -> BinaryIO:
        image = self.columns()["image"]
        if image is None or image["bytes"] is None and image["path"] is None:
            raise UserError(f"row {self.row} of {self.dataset} ({self.split}) has no image")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")

    def columns(self) -> dict[str, Any]:
        """The row's columns, with the image as bytes or a path.

        Raises `UserError` when the row is damaged.
        """
        try:
            return hf_dataset(self.dataset, self.split)[self.row]
        except UserError:
            raise
        # pyarrow and the columns' decoders: UnicodeDecodeError, ArrowInvalid, OSError, ...
        except Exception as error:
            raise UserError(f"row {self.row} of {self.dataset} ({self.split}) can't be read "
                            f"({error})") from error


@dataclass(frozen=True)
class Photo:
    """A photo and where it lies.

    `name`: unique, with / between folders, and with the file's suffix where it is a file.
    """

    name: str
    place: FilePlace | TarPlace | RowPlace

    @property
    def stem(self) -> str:
        """The name without its suffix. Sidecars and output folders have this name."""
        return stem_of(self.name)


@dataclass(frozen=True)
class Item:
    """A photo or file that isn't used, and the reason.

    Characters that UTF-8 can't hold are escaped.
    """

    name: str
    reason: str

    def __post_init__(self) -> None:
        for key, text in vars(self).copy().items():
            object.__setattr__(self, key, escaped(text))

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


@dataclass
class Listing:
    """What a source holds.

    `rejected`: faulty items. `left_out`: good photos that are not used.
    """

    photos: list[Photo]
    rejected: list[Item]
    left_out: list[Item]


def list_photos(images: Path | None, hf_name: str | None, hf_split: str) -> Listing:
    """List the photos of a source in a fixed order.

    The source is a folder, a tar or a folder of tars (`images`), or a dataset (`hf_name`). Two
    photos whose names differ only in the suffix would share their sidecars: the second is rejected,
    or left out when it is a file and the first is in a tar. The second view of a stereo pair is
    left out. Raises `UserError` when the source can't be read or is empty.
    """
    if hf_name is not None:
        photos = [Photo(f"{row:08d}", RowPlace(hf_name, hf_split, row))
                  for row in range(len(hf_dataset(hf_name, hf_split)))]
        if not photos:
            raise UserError(f"{hf_name} (given by --hf_dataset) has no images in {hf_split}")
        return Listing(photos, [], [])
    listing = _without_twins(*all_photos(images))
    if not listing.photos and not listing.rejected:
        raise UserError(f"{images} (given by --images) has no images")
    return listing


def all_photos(images: Path) -> tuple[list[Photo], list[Item]]:
    """All photos of a tar, or of a folder and the tars in it, and the items that can't be read.

    Both are in a fixed order.
    """
    rejected: list[Item] = []
    files, tars = [], [images]
    if images.is_dir():
        files = walk(images, rejected)
        tars = [path for path in files if path.suffix.lower() == ".tar" and path.parent == images]
    photos = [photo for tar in tars for photo in _in_tar(tar, rejected)]
    for path in files:
        name = composed(path.relative_to(images).as_posix())
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos.append(Photo(name, FilePlace(str(path))))
        elif reason := why_not_listed(path):
            rejected.append(Item(name, reason))
    return photos, rejected


def walk(folder: Path, rejected: list[Item] | None = None) -> list[Path]:
    """The files below `folder`, sorted, without hidden ones.

    Links are followed, but no folder is entered twice. Folders that can't be read, broken links and
    what is no regular file (a pipe, say) are added to `rejected`, if it is given.
    """
    found, seen = [], set()
    bad: dict[Path, str] = {}

    def no_folder(error: OSError) -> None:
        bad[Path(error.filename)] = f"the folder can't be read ({error.strerror})"

    for parent, folders, files in os.walk(folder, onerror=no_folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    found.append(path)
                else:
                    bad[path] = "it is neither a file nor a folder"
            except OSError as error:  # a broken link, or a folder that gives its files' names only
                target = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
                bad[path] = f"it can't be opened{target}: {error.strerror}"
    if rejected is not None:
        rejected += [Item(path.relative_to(folder).as_posix(), bad[path]) for path in sorted(bad)]
    return sorted(found)


def _without_twins(photos: list[Photo], rejected: list[Item]) -> Listing:
    first: dict[str, Photo] = {}
    left_out: list[Item] = []
    for photo in photos:
        if not is_text(photo.name):
            rejected.append(Item(photo.name, "its name is not UTF-8 text"))
        elif "\0" in photo.name or max(len(part.encode()) for part in photo.name.split("/")) > LONGEST_NAME:
            rejected.append(Item(photo.name, "its name can't be a file's"))
        elif any(CROP_FILE.fullmatch(folder) for folder in photo.name.split("/")[:-1]):
            rejected.append(Item(photo.name, "one of its folders is called like a crop's file"))
        elif photo.stem in first:
            other = first[photo.stem]
            if isinstance(other.place, TarPlace) and isinstance(photo.place, FilePlace):
                left_out.append(Item(photo.name, f"{other.name} is in {other.place.tar}, too"))
            else:
                rejected.append(Item(photo.name, f"{other.name} has the same name, and so the same sidecars"))
        else:
            first[photo.stem] = photo
    pairs = {stem: other for stem in first if (other := first_view(stem)) in first}
    left_out += [Item(first[stem].name, f"the other view of {first[other].name} (a stereo pair is one photo)")
                for stem, other in pairs.items()]
    return Listing([photo for stem, photo in first.items() if stem not in pairs], rejected, left_out)


def first_view(stem: str) -> str | None:
    """For the name of a stereo pair's second view the name of the first, for others None."""
    for first, second in VIEWS:
        for mark in "_-":
            if stem.lower().endswith(mark + second):
                return stem[:-len(second)] + first
    return None


def _in_tar(tar: Path, rejected: list[Item]) -> Iterator[Photo]:
    """The photos of a webdataset tar, in the tar's order; faulty samples are added to `rejected`.

    The files of one sample have the same path up to the first dot in the file's name. Hidden files
    are passed over.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if ((member.issym() or member.islnk())
                        and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES):
                    rejected.append(Item(f"{tar.stem}/{member.name}",
                                         f"it is a link in {tar}, which is not followed"))
                if member.isfile():
                    folder, _, last = composed(member.name.removeprefix("./")).rpartition("/")
                    key, _, suffix = last.partition(".")
                    if not key:  # a hidden file, as macOS puts ._NAME beside each NAME
                        continue
                    sample = samples.setdefault(f"{folder}/{key}" if folder else key, {})
                    if f".{suffix.lower()}" in sample:
                        rejected.append(Item(f"{tar.stem}/{member.name}",
                                             f"it is in {tar} twice; the first is taken"))
                    sample.setdefault(f".{suffix.lower()}", (member.offset_data, member.size))
            file.fileobj.seek(file.offset)
            # tarfile silently takes a damaged header for the end
            if any(file.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"damaged at byte {file.offset}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two: a damaged header
        rejected.append(Item(tar.name, f"{tar} can't be read to its end as an uncompressed tar ({error})"))
    for key, members in samples.items():
        # A photo's suffix may be a double one (.jpg.png) where there is none of the plain ones.
        suffix, *others = ([suffix for suffix in members if suffix in IMAGE_SUFFIXES]
                           or [suffix for suffix in members if suffix.endswith(IMAGE_SUFFIXES)] or [None])
        rejected += [Item(f"{tar.stem}/{key}{other}", f"{key}{suffix} is the photo of this sample of {tar}")
                     for other in others]
        name = f"{tar.stem}/{key}{suffix or ''}"
        if ".." in PurePosixPath(key).parts or key.startswith("/"):
            rejected.append(Item(name, f"its path in {tar} leaves the dataset"))
        elif suffix is None:
            unread = [reason for other in members if (reason := why_unread(other))]
            rejected.append(Item(name, f"sample {key} of {tar} has no image" + (
                f" that is read: it {unread[0]}" if unread else "")))
        else:
            yield Photo(name, TarPlace(str(tar), suffix, members))


@lru_cache(maxsize=2)
def hf_dataset(name: str, split: str) -> Any:
    """One split of a dataset, its images left undecoded.

    Raises `UserError` that names the dataset, split or column which is missing or can't be read.
    """
    import datasets

    try:
        if Path(name).is_dir():
            loaded = datasets.load_from_disk(name)
        else:
            place, _, revision = name.partition("@")
            loaded = datasets.load_dataset(place, revision=revision or None)
    except IndexError as error:  # datasets joins a split's tables, and there are none
        raise UserError(f"{name} (given by --hf_dataset) has a split without rows; make it again without "
                        "that split") from error
    except Exception as error:  # the hub's client, parsers and loaders of all kinds of data sets
        raise UserError(f"{name} (given by --hf_dataset) can't be loaded ({error}); give a folder made by "
                        "save_to_disk, or a name on the Hugging Face Hub") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise UserError(f"{name} has no split {split!r}; --hf_split is one of {', '.join(loaded)}")
        loaded = loaded[split]
    elif split not in ("train", str(loaded.split)):
        raise UserError(f"{name} (given by --hf_dataset) is one split, {loaded.split}; drop --hf_split "
                        f"{split}")
    if not isinstance(loaded.features.get("image"), datasets.Image):
        raise UserError(f"{name} has no image column named 'image'; it has {', '.join(loaded.column_names)}")
    return loaded.cast_column("image", datasets.Image(decode=False))
