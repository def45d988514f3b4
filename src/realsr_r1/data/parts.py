"""A dataset is made in parts, each by one process: a part is written whole or not at all, and found again after a crash.

A part is a folder with, for each split it has records of, SPLIT.arrow, SPLIT.jsonl (records) and SPLIT.parameters.jsonl (what
was drawn), and part.json, which says what was rejected. Image files go to their place beside the parts at once: made again, they
are the same. What a part holds doesn't depend on the number of processes or machines. Joining parts is assembly.py's business.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realsr_r1.data.arrow_rows import COLUMN_OF_KEY, RowWriter
from realsr_r1.data.crops import CropPlan, make_crops
from realsr_r1.data.dataset import Record
from realsr_r1.data.near_duplicates import Hashes
from realsr_r1.data.photos import decode
from realsr_r1.data.sidecars import Reader
from realsr_r1.data.sources import FilePlace, Item, Photo
from realsr_r1.errors import UserError
from realsr_r1.files import atomic_folder, write_json

NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # of one photo's files
SPLITS = ("train", "test_crops", "test")
PART_FILE = "part.json"
MOST_PARTS = 256  # so many Arrow files of a split are open at a time when the dataset is read
FEWEST_CROPS = 8  # of a part that isn't among the last
CROPS_OF_A_DECODING = 16  # at least, where parts share a photo: each of them decodes it
MOST_BYTES = 2**30  # of an image file of a list: a column's bytes are counted in 31 bits


@dataclass(frozen=True)
class Task:
    """Crops of one photo for one split: their numbers."""

    photo: Photo
    split: str
    numbers: range


@dataclass(frozen=True)
class Part:
    """`unit`: parts of one unit share a photo, and are made on one machine."""

    number: int
    unit: int
    tasks: tuple[Any, ...]  # of Task, or of (number, record)

    @property
    def size(self) -> int:
        """In crops or records."""
        return sum(len(task.numbers) if isinstance(task, Task) else 1 for task in self.tasks)

    @property
    def photos(self) -> list[Photo]:
        return list({task.photo.name: task.photo for task in self.tasks}.values())


def plan_parts(photos: Iterable[tuple[Photo, dict[str, int]]]) -> list[Part]:
    """Cut the work into parts of whole photos, or of a share of one that has many crops. `photos`: with crops by split.

    The last parts are small, so that no process waits long for the end.
    """
    photos = list(photos)
    crops = sum(sum(counts.values()) for _, counts in photos)
    wanted = max(FEWEST_CROPS, -(-crops // MOST_PARTS))
    pieces: list[tuple[int, list[Task]]] = []  # with their units
    unit: list[Task] = []
    for position, (photo, counts) in enumerate(photos, start=1):
        unit += [Task(photo, split, range(count)) for split, count in counts.items() if count]
        size = _crops(unit)
        if size >= wanted or position == len(photos) and unit:
            number = pieces[-1][0] + 1 if pieces else 0
            pieces += [(number, piece) for piece in _cut(unit, max(1, size // max(wanted, CROPS_OF_A_DECODING)))]
            unit = []
    for _ in range(2):
        if pieces and len(pieces) < MOST_PARTS and _crops(pieces[-1][1]) >= FEWEST_CROPS:
            number, last = pieces.pop()
            pieces += [(number, half) for half in _cut(last, 2)]
    return [Part(number, unit, tuple(tasks)) for number, (unit, tasks) in enumerate(pieces)]


def _crops(tasks: Iterable[Task]) -> int:
    return sum(len(task.numbers) for task in tasks)


def _cut(tasks: Sequence[Task], count: int) -> list[list[Task]]:
    """Tasks in `count` pieces, even to a crop. `count`: at most the number of crops."""
    size = _crops(tasks)
    pieces: list[list[Task]] = []
    for number in range(count):
        start, stop = size * number // count, size * (number + 1) // count
        pieces.append([])
        for task in tasks:
            length = len(task.numbers)
            inside = task.numbers[max(start, 0):max(stop, 0)]
            if inside:
                pieces[-1].append(replace(task, numbers=inside))
            start, stop = start - length, stop - length
    return pieces


def plan_list(records: Sequence[Record]) -> list[Part]:
    """Cut a list into parts of whole records."""
    size = max(FEWEST_CROPS, -(-len(records) // MOST_PARTS))
    numbered = list(enumerate(records))
    return [Part(number, number, tuple(numbered[start:start + size]))
            for number, start in enumerate(range(0, len(records), size))]


# --- making one ---

@dataclass
class PartWriter:
    """Writes a part into `folder`. Use as a context manager."""

    folder: Path
    rejected: dict[str, Item] = field(default_factory=dict)
    left_out: dict[str, Item] = field(default_factory=dict)
    _arrow: dict[str, RowWriter] = field(default_factory=dict)
    _lines: dict[str, Any] = field(default_factory=dict)

    def add(self, split: str, record: Record, files: dict[str, bytes], parameters: dict[str, Any] | None = None) -> None:
        """`files`: key of a path -> the bytes of its file."""
        if split not in self._arrow:
            self._arrow[split] = RowWriter(self.folder / f"{split}.arrow", record)
        self._arrow[split].add(record, files)
        self._line(f"{split}.jsonl", record)
        if parameters is not None:
            self._line(f"{split}.parameters.jsonl", {"image_path": record["image_path"], **parameters})

    def _line(self, name: str, value: dict[str, Any]) -> None:
        if name not in self._lines:
            self._lines[name] = open(self.folder / name, "w", encoding="utf-8", errors="backslashreplace")  # JSON, too
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
        write_json(self.folder / PART_FILE, {name: [vars(item) for item in items.values()]
                                             for name, items in (("rejected", self.rejected), ("left_out", self.left_out))})


@dataclass(frozen=True)
class PhotoJob:
    """What it takes to make any part of a dataset of photos. `work`: the folder with `parts` and the image files."""

    work: Path
    plan: CropPlan
    tags: Reader | None  # None where a model gives them: `make_missing_parts` has them put in by `prepare`
    descriptions: Reader | None
    evaluation: Hashes  # of photos that must not be trained on
    twins: dict[str, str]  # photos like an earlier one that has test crops -> that one
    test: frozenset[str]  # photos of the split test, by name

    def for_part(self, part: Part) -> PhotoJob:
        """The same with as little as this part needs."""
        photos = part.photos
        names = {photo.name for photo in photos}
        return replace(self, test=self.test & names, twins={name: self.twins[name] for name in names & self.twins.keys()},
                       tags=self.tags.only(photos) if self.tags else None,
                       descriptions=self.descriptions.only(photos) if self.descriptions else None)

    def make(self, part: Part) -> None:
        """Write the part and the image files of its crops."""
        with atomic_folder(part_folder(self.work, part)) as folder, PartWriter(folder) as writer:
            for photo in part.photos:
                try:
                    self._make_photo(photo, [task for task in part.tasks if task.photo.name == photo.name], writer)
                except UserError as error:
                    writer.rejected[photo.name] = Item(photo.name, str(error))
                except OSError as error:
                    if error.errno not in NAME_ERRORS:
                        raise
                    writer.rejected[photo.name] = Item(photo.name, f"{error.filename} can't be written ({error.strerror})")

    def _make_photo(self, photo: Photo, tasks: list[Task], writer: PartWriter) -> None:
        if photo.name in self.twins:
            reason = f"a near-duplicate of {self.twins[photo.name]}, parts of which are kept for test_crops"
            writer.left_out[photo.name] = Item(photo.name, reason)
            return
        assert self.tags is not None
        extra: dict[str, Any] = {"tag": self.tags.read(photo)}
        if self.descriptions is not None:
            extra["descriptions"] = self.descriptions.read(photo)
        image = decode(photo)
        like = self.evaluation.like(image) if photo.name not in self.test else None
        if like is not None:
            writer.left_out[photo.name] = Item(photo.name, f"a near-duplicate of the evaluation photo {like}")
            return
        for task in tasks:
            for crop in make_crops(image, photo.name, task.split, task.numbers, self.plan):
                files = {"image_path": _png(crop.lq), "hq_path": _png(crop.hq)}
                for key, data in files.items():
                    path = self.work / crop.record[key]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                writer.add(task.split, {**crop.record, **extra}, files, crop.parameters)


def _png(image: Image.Image) -> bytes:
    """The file of an RGB image: pixels only, no colour profile. One filter for all rows takes two thirds of the time of
    trying them, for 2 % larger files.
    """
    import cv2

    quick = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
             cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
    return cv2.imencode(".png", cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), quick)[1].tobytes()


@dataclass(frozen=True)
class ListJob:
    """What it takes to make any part of a dataset of a list's records. `root`: the folder its paths lie in."""

    work: Path
    source: Path
    root: Path

    def for_part(self, part: Part) -> ListJob:
        return self

    def make(self, part: Part) -> None:
        """Write the part; records whose image files can't be read are rejected."""
        with atomic_folder(part_folder(self.work, part)) as folder, PartWriter(folder) as writer:
            for number, record in part.tasks:
                try:
                    writer.add("train", record, {key: self._file(record[key]) for key in COLUMN_OF_KEY if key in record})
                except UserError as error:
                    name = f"{self.source.name}:{number}"
                    writer.rejected[name] = Item(name, f"record {number} of {self.source}: {error}")

    def _file(self, name: str) -> bytes:
        path = self.root / name
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
            size = path.stat().st_size if path.is_file() else 0
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null byte, a name that is too long
            raise UserError(f"{name!r} is no path ({error})") from error
        if not inside:
            raise UserError(f"{name} lies outside of {self.root}; give the folder that its images lie in as --images")
        if size > MOST_BYTES:
            raise UserError(f"{name} has {size / 2**30:.1f} GiB; an image file has at most {MOST_BYTES / 2**30:.0f}")
        decode(Photo(name, FilePlace(str(path))))
        return path.read_bytes()


Job = PhotoJob | ListJob


def part_folder(work: Path, part: Part) -> Path:
    return work / "parts" / f"{part.number:05d}"


def finished_parts(work: Path) -> list[Path]:
    """The folders of the parts that are made, in order; those that a killed process left half-made have hidden names."""
    return sorted((work / "parts").glob("[0-9]*/"))


def make_missing_parts(job: Job, parts: Sequence[Part], processes: int, prepare: Callable[[Part, Job], Job] | None = None) -> None:
    """Make those of the parts that aren't there, over processes, with a progress bar (rate, time left).

    `prepare`: called for each part in order, in this process, before it is handed out; it returns the job to hand out.
    """
    from realsr_r1.data.processes import run_all

    (job.work / "parts").mkdir(parents=True, exist_ok=True)
    for half_made in (job.work / "parts").glob(".*"):
        shutil.rmtree(half_made, ignore_errors=True)
    missing = [part for part in parts if not part_folder(job.work, part).is_dir()]
    total = sum(part.size for part in parts)
    unit = "crops" if isinstance(job, PhotoJob) else "records"

    def calls() -> Iterable[tuple[Callable[[], None], int]]:
        for part in missing:
            ready = job.for_part(part)
            yield _Make(prepare(part, ready) if prepare else ready, part), part.size

    run_all(calls(), min(processes, len(missing)), total, total - sum(part.size for part in missing), unit)


@dataclass(frozen=True)
class _Make:
    """`job.make(part)` as something that can be sent to a process."""

    job: Job
    part: Part

    def __call__(self) -> None:
        self.job.make(self.part)
