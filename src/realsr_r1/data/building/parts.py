"""A dataset is made in parts: how the work is cut into them, and where they lie.

A part is a folder with, for each split it has records of, SPLIT.arrow, SPLIT.jsonl (records) and SPLIT.parameters.jsonl (what
was drawn), and part.json, which says what was rejected, and how large the files are. What a part holds doesn't depend on the number
of processes or machines. Making one is jobs.py's business, joining them assembly.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realsr_r1.data.photos.sources import Photo
from realsr_r1.data.records import Record

SPLITS = ("train", "test_crops", "test")
PART_FILE = "part.json"
MOST_PARTS = 256  # so many Arrow files of a split are open at a time when the dataset is read
FEWEST_CROPS = 8  # of a part that isn't among the last
CROPS_OF_A_DECODING = 16  # at least, where parts share a photo: each of them decodes it


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


def part_folder(work: Path, part: Part) -> Path:
    return work / "parts" / f"{part.number:05d}"


def finished_parts(work: Path) -> list[Path]:
    """The folders of the parts that are made, in order; those that a killed process left half-made have hidden names."""
    return sorted((work / "parts").glob("[0-9]*/"))
