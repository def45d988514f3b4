"""Makes the parts of a dataset, each in one process.

A part is written completely or not at all, and is found again after a crash. Image files are
written to their final place, outside the parts; when a part is made again, they come out the same.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from realsr_r1.chain.checks import check_question
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_folder, write_json
from realsr_r1.core.texts import same_named
from realsr_r1.data.building.arrow_rows import COLUMN_OF_KEY, RowWriter
from realsr_r1.data.building.parts import PART_FILE, Part, Task, part_folder
from realsr_r1.data.degradation.crops import CropPlan, make_crops, split_regions
from realsr_r1.data.photos.decoding import decode, picture_of
from realsr_r1.data.photos.near_duplicates import Hashes
from realsr_r1.data.photos.sidecars import LEVELS, Reader, checked_descriptions, checked_tags
from realsr_r1.data.photos.sources import FilePlace, Item, Photo
from realsr_r1.data.records import Record, check_labels, check_record

# of one photo's files
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
MOST_BYTES = 2**30  # of an image file of a list: Arrow counts a column's bytes in 31 bits


@dataclass
class PartWriter:
    """Writes a part into `folder`; to be used as a context manager, which completes the part.

    `with_rows`: whether to write the Arrow files, too. `images`: path -> size in bytes of each image
    file that was written for the part.
    """

    folder: Path
    with_rows: bool = True
    images: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, Item] = field(default_factory=dict)
    left_out: dict[str, Item] = field(default_factory=dict)
    _arrow: dict[str, RowWriter] = field(default_factory=dict)
    _lines: dict[str, Any] = field(default_factory=dict)

    def add(self, split: str, record: Record, files: dict[str, bytes],
            parameters: dict[str, Any] | None = None) -> None:
        """Add a record to a split.

        `files`: for each key of the record that names an image file, the bytes of that file.
        `parameters`: the values that were drawn for its degradation.
        """
        if self.with_rows:
            if split not in self._arrow:
                self._arrow[split] = RowWriter(self.folder / f"{split}.arrow", record)
            self._arrow[split].add(record, files)
        self._line(f"{split}.jsonl", record)
        if parameters is not None:
            self._line(f"{split}.parameters.jsonl", {"image_path": record["image_path"], **parameters})

    def _line(self, name: str, value: dict[str, Any]) -> None:
        if name not in self._lines:
            # JSON, too
            self._lines[name] = open(self.folder / name, "w", encoding="utf-8", errors="backslashreplace")
        self._lines[name].write(json.dumps(value, ensure_ascii=False) + "\n")

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for file in self._lines.values():
            file.close()
        if kind is not None:
            return
        for writer in self._arrow.values():
            writer.close()
        write_json(self.folder / PART_FILE, {
            **{name: [vars(item) for item in items.values()]
               for name, items in (("rejected", self.rejected), ("left_out", self.left_out))},
            "files": {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())},
            "images": self.images})


@dataclass(frozen=True)
class PhotoJob:
    """What it takes to make any part of a dataset of photos.

    `work`: the folder with `parts` and the image files. `tags`, `descriptions`: None where a model
    gives them; then `make_missing_parts` gets them through `prepare`. `evaluation`: hashes of the
    photos that must not be trained on. `twins`: photo -> the photo it looks like, which has test
    crops. `test`: names of the photos of the split test. `with_rows`: false where models are still
    to be asked about each crop (annotated.py).
    """

    work: Path
    plan: CropPlan
    tags: Reader | None
    descriptions: Reader | None
    evaluation: Hashes
    twins: dict[str, str]
    test: frozenset[str]
    with_rows: bool = True

    def for_photos(self, photos: Sequence[Photo]) -> PhotoJob:
        """This job with only what these photos need, so that little is sent to another process."""
        names = {photo.name for photo in photos}
        return replace(self, test=self.test & names,
                       twins={name: self.twins[name] for name in names & self.twins.keys()},
                       tags=self.tags.only(photos) if self.tags else None,
                       descriptions=self.descriptions.only(photos) if self.descriptions else None)

    def for_part(self, part: Part) -> PhotoJob:
        return self.for_photos(part.photos)

    def usable(self, photo: Photo) -> Image.Image:
        """The photo, if crops of it can be made and may be used.

        Raises `UserError` that says why not.

        What a model will say of the photo is not known yet, so a photo may still fail later.
        """
        image, _ = self._open(photo)
        like = self._evaluation_photo_like(photo, image)
        if like is not None:
            raise UserError(f"a near-duplicate of the evaluation photo {like}")
        return image

    def _open(self, photo: Photo) -> tuple[Image.Image, dict[str, Any]]:
        """The photo, and what is known of it as columns of a record.

        Raises `UserError` when no crops of it can be made.
        """
        known = {"tag": self.tags, "descriptions": self.descriptions}
        known = {column: reader.read(photo) for column, reader in known.items() if reader is not None}
        image = decode(photo)
        split_regions(image.size, photo.name, self._plan_of(photo))
        return image, known

    def _plan_of(self, photo: Photo) -> CropPlan:
        return replace(self.plan, reserve=False) if photo.name in self.test else self.plan

    def _evaluation_photo_like(self, photo: Photo, image: Image.Image) -> str | None:
        return self.evaluation.like(image) if photo.name not in self.test else None

    def make(self, part: Part) -> None:
        """Write the part and the image files of its crops."""
        with (atomic_folder(part_folder(self.work, part)) as folder,
              PartWriter(folder, self.with_rows) as writer):
            for photo in part.photos:
                try:
                    self._make_photo(photo, [task for task in part.tasks if task.photo.name == photo.name],
                                     writer)
                except UserError as error:
                    writer.rejected[photo.name] = Item(photo.name, str(error))
                except OSError as error:
                    if error.errno not in NAME_ERRORS or error.filename is None:
                        raise
                    where = os.path.relpath(error.filename, self.work)
                    writer.rejected[photo.name] = Item(photo.name,
                                                       f"{where} can't be written ({error.strerror})")

    def _make_photo(self, photo: Photo, tasks: list[Task], writer: PartWriter) -> None:
        image, known = self._open(photo)
        like = self._evaluation_photo_like(photo, image)
        if like is not None:
            writer.left_out[photo.name] = Item(photo.name, f"a near-duplicate of the evaluation photo {like}")
            return
        if photo.name in self.twins:
            reason = f"a near-duplicate of {self.twins[photo.name]}, parts of which are kept for test_crops"
            writer.left_out[photo.name] = Item(photo.name, reason)
            return
        for task in tasks:
            for crop in make_crops(image, photo.name, task.split, task.numbers, self._plan_of(photo)):
                images = {"image_path": crop.lq, "hq_path": crop.hq}
                files = {key: _png(image) for key, image in images.items() if image is not None}
                for key, data in files.items():
                    path = self.work / crop.record[key]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    writer.images[crop.record[key]] = len(data)
                writer.add(task.split, {**crop.record, **known}, files, crop.parameters)


def _png(image: Image.Image) -> bytes:
    """An RGB image as a PNG file: pixels only, no colour profile.

    All rows use one filter: that takes two thirds of the time of trying them all, and the files are
    2 % larger.
    """
    import cv2

    quick = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
             cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
    return cv2.imencode(".png", cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), quick)[1].tobytes()


@dataclass(frozen=True)
class ListJob:
    """What it takes to make any part of a dataset that is made from a JSON list.

    `source`: the list. `root`: the folder that its paths start from. `keys`: the keys of the schema
    that each record must have. `levels`: of the chain's descriptions. `question`: what all records
    ask, in place of their own.
    """

    work: Path
    source: Path
    root: Path
    keys: frozenset[str]
    levels: tuple[str, ...] = LEVELS
    question: str | None = None

    def for_part(self, part: Part) -> ListJob:
        return self

    def make(self, part: Part) -> None:
        """Write the part.

        Records that are wrong, or whose image files can't be read, are rejected.
        """
        with atomic_folder(part_folder(self.work, part)) as folder, PartWriter(folder) as writer:
            for number, record in part.tasks:
                try:
                    check_record(record, self.keys)
                    if self.question is not None:
                        record = {**record, "problem": self.question}
                    _check_content(record, self.levels)
                    writer.add("train", record,
                               {key: self._file(record[key]) for key in COLUMN_OF_KEY if key in record})
                except UserError as error:
                    name = f"{self.source.name}:{number}"
                    writer.rejected[name] = Item(name, f"record {number} of {self.source}: {error}")

    def _file(self, name: str) -> bytes:
        try:
            path = same_named(self.root / name)
            inside = path.resolve().is_relative_to(self.root.resolve())
            size = path.stat().st_size if path.is_file() else 0
        # a loop of links, a null byte, a name that is too long
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{name!r} is no path ({error})") from error
        if not inside:
            raise UserError(f"{name} lies outside of {self.root}; give the folder that its images lie in as "
                            "--images")
        if size > MOST_BYTES:
            raise UserError(f"{name} has {size / 2**30:.1f} GiB; an image file has at most "
                            f"{MOST_BYTES / 2**30:.0f}")
        picture = picture_of(Photo(name, FilePlace(str(path))))
        # What other readers would read in other ways (16 bits, profiles, HEIC) is kept as we read it.
        return path.read_bytes() if picture.is_plain else _png(picture.image)


def _check_content(record: Record, levels: tuple[str, ...]) -> None:
    """Raise `UserError` when a text of the record can't stand in a chain.

    Tags may be missing here: a list may hold photos of which no tag is known.
    """
    check_question(record["problem"], "'problem'")
    if record["tag"]:
        checked_tags(record["tag"], "'tag'")
    if "descriptions" in record:
        checked_descriptions(record["descriptions"], "'descriptions'", levels)
    check_labels(record.get("degradation", ()), "'degradation'")


class Job(Protocol):
    """What makes the parts of a dataset, in any process."""

    work: Path

    def for_part(self, part: Part) -> Job: ...

    def make(self, part: Part) -> None: ...


def make_missing_parts(job: Job, parts: Sequence[Part], processes: int,
                       prepare: Callable[[Part, Job], Job] | None = None) -> None:
    """Make the parts that are missing, in several processes, with a progress bar (rate, time left).

    `prepare(part, job)` is called in this process for each part in order, before the part is handed
    out. It returns the job that makes the part.
    """
    from realsr_r1.core.processes import run_all

    (job.work / "parts").mkdir(parents=True, exist_ok=True)
    for half_made in (job.work / "parts").glob(".*"):
        shutil.rmtree(half_made, ignore_errors=True)
    missing = [part for part in parts if not part_folder(job.work, part).is_dir()]
    total = sum(part.size for part in parts)
    unit = "records" if isinstance(job, ListJob) else "crops"

    def calls() -> Iterable[tuple[Callable[[], None], int]]:
        for part in missing:
            ready = job.for_part(part)
            yield _Make(prepare(part, ready) if prepare else ready, part), part.size

    run_all(calls(), min(processes, len(missing)), total, total - sum(part.size for part in missing), unit)


@dataclass(frozen=True)
class _Make:
    """The call `job.make(part)` as an object that can be sent to another process."""

    job: Job
    part: Part

    def __call__(self) -> None:
        self.job.make(self.part)
