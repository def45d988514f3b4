"""The parts that a dataset is made in: how the work is divided, and where the parts lie.

A part is a folder. For each split that it has records of, it holds SPLIT.arrow, SPLIT.jsonl (the
records) and SPLIT.parameters.jsonl (the values that were drawn). Its part.json lists the rejected
items and the sizes of the files. What a part holds does not depend on the number of processes or
machines. jobs.py makes parts, assembly.py joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realsr_r1.core.schema import Count, Place, Text, TypedDict
from realsr_r1.data.photos.sources import Photo
from realsr_r1.data.records import Record

SPLITS = ("train", "test_crops", "test")
PART_FILE = "part.json"
MOST_PARTS = 256  # reading the dataset opens one Arrow file for each part
FEWEST_CROPS = 8  # crops in a part; the last parts may have fewer
CROPS_OF_A_DECODING = 16  # fewest crops in a part that shares its photo, since each such part decodes it


class ItemFile(TypedDict):
    """An `Item` in a file."""

    name: Text
    reason: Text


class PartFile(TypedDict):
    """`PART_FILE`. `files`, `images`: path, below the part and below the folder of parts -> bytes."""

    rejected: list[ItemFile]
    left_out: list[ItemFile]
    files: dict[Place, Count]
    images: dict[Place, Count]


@dataclass(frozen=True)
class Task:
    """Crops of one photo for one split, given by their numbers."""

    photo: Photo
    split: str
    numbers: range


@dataclass(frozen=True)
class Part:
    """A piece of the work. Parts with the same `unit` share a photo and are made on one machine.

    `tasks`: `Task`s, or for a list pairs of (number, record).
    """

    number: int
    unit: int
    tasks: tuple[Any, ...]

    @property
    def size(self) -> int:
        """The number of crops or records."""
        return sum(len(task.numbers) if isinstance(task, Task) else 1 for task in self.tasks)

    @property
    def photos(self) -> list[Photo]:
        return list({task.photo.name: task.photo for task in self.tasks}.values())


def plan_parts(photos: Iterable[tuple[Photo, dict[str, int]]]) -> list[Part]:
    """Divide the work into parts.

    A part holds whole photos, or some crops of a photo that has many.

    `photos`: each photo with its number of crops for each split. The last parts are small, so that
    all processes end at nearly the same time.
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
            pieces += [(number, piece) for piece in _cut(
                unit, max(1, size // max(wanted, CROPS_OF_A_DECODING)))]
            unit = []
    for _ in range(2):
        if pieces and len(pieces) < MOST_PARTS and _crops(pieces[-1][1]) >= FEWEST_CROPS:
            number, last = pieces.pop()
            pieces += [(number, half) for half in _cut(last, 2)]
    return [Part(number, unit, tuple(tasks)) for number, (unit, tasks) in enumerate(pieces)]


def _crops(tasks: Iterable[Task]) -> int:
    return sum(len(task.numbers) for task in tasks)


def _cut(tasks: Sequence[Task], count: int) -> list[list[Task]]:
    """Divide tasks into `count` pieces whose sizes differ by at most one crop.

    `count`: at most the number of crops.
    """
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
    """Divide the records of a list into parts."""
    size = max(FEWEST_CROPS, -(-len(records) // MOST_PARTS))
    numbered = list(enumerate(records))
    return [Part(number, number, tuple(numbered[start:start + size]))
            for number, start in enumerate(range(0, len(records), size))]


def part_folder(work: Path, part: Part) -> Path:
    return work / "parts" / f"{part.number:05d}"


def finished_parts(work: Path) -> list[Path]:
    """The folders of the finished parts, in order.

    Unfinished ones, of a killed process, have hidden names.
    """
    return sorted((work / "parts").glob("[0-9]*/"))
