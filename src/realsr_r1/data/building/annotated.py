"""Adds what models say of each crop to the parts of a dataset whose crops are made already.

Crops are drawn first, all of them, without what is not known yet (`PhotoJob` with `with_rows`
false). Then the models are asked about the crops of a part (data/photos/annotation.py), and this job
writes the part with the answers. A crop of which a model says nothing that can be used is rejected.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_folder
from realsr_r1.core.json_yaml import parsed_json, read_json
from realsr_r1.core.schema import Json, Text
from realsr_r1.data.building.arrow_rows import COLUMN_OF_KEY
from realsr_r1.data.building.assembly import link_or_copy
from realsr_r1.data.building.jobs import PartWriter, PhotoJob, make_missing_parts
from realsr_r1.data.building.parts import PART_FILE, SPLITS, Part, PartFile, part_folder
from realsr_r1.data.photos.sidecars import Reader
from realsr_r1.data.photos.sources import FilePlace, Item, Photo
from realsr_r1.data.records import Record

DRAWN = "drawn"  # the folder with the crops, inside the working folder


@dataclass(frozen=True)
class AnnotatedJob:
    """What it takes to write any part with the answers.

    `work`: the folder with `parts` and the image files. `key`: of the record, which names the image
    that models are shown: `image_path` (LQ) or `hq_path`. `readers`: column -> what models said.
    """

    work: Path
    key: str
    readers: dict[str, Reader] = field(default_factory=dict)

    @property
    def drawn(self) -> Path:
        """The folder with the drawn crops and their parts."""
        return self.work / DRAWN

    def for_part(self, part: Part) -> AnnotatedJob:
        return self

    def crops(self, part: Part) -> list[Photo]:
        """Return the images of a drawn part that models are asked about."""
        return [self._crop(record) for split in SPLITS for record, _ in self._records(part, split)]

    def make(self, part: Part) -> None:
        """Write the part: its records with the answers, and the image files beside it."""
        with atomic_folder(part_folder(self.work, part)) as folder, PartWriter(folder) as writer:
            note = read_json(part_folder(self.drawn, part) / PART_FILE, PartFile)
            for name, items in (("rejected", writer.rejected), ("left_out", writer.left_out)):
                items.update((item["name"], Item(**item)) for item in note[name])
            for split in SPLITS:
                for record, parameters in self._records(part, split):
                    crop = self._crop(record)
                    try:
                        known = {column: reader.read(crop) for column, reader in self.readers.items()}
                    except UserError as error:
                        writer.rejected[crop.name] = Item(crop.name, str(error))
                        continue
                    files = {}
                    for key in (key for key in COLUMN_OF_KEY if key in record):
                        link_or_copy(self.drawn / record[key], self.work / record[key])
                        files[key] = (self.work / record[key]).read_bytes()
                        writer.images[record[key]] = len(files[key])
                    writer.add(split, {**record, **known}, files, parameters)

    def _crop(self, record: Record) -> Photo:
        return Photo(record[self.key], FilePlace(str(self.drawn / record[self.key])))

    def _records(self, part: Part, split: str) -> Iterator[tuple[Record, dict[str, Any] | None]]:
        """Yield each record of a drawn part, with the values drawn for its degradation if there are any."""
        folder = part_folder(self.drawn, part)
        lines, values = folder / f"{split}.jsonl", folder / f"{split}.parameters.jsonl"
        records = _lines(lines)
        drawn = _lines(values) if values.is_file() else [None] * len(records)
        for record, parameters in zip(records, drawn, strict=True):
            if parameters is not None:
                parameters.pop("image_path")
            yield record, parameters


def make_annotated_parts(job: PhotoJob, parts: Sequence[Part], processes: int, key: str,
                         of_photos: Callable[[Part, Any], Any] | None,
                         of_crops: Callable[[Part, AnnotatedJob], AnnotatedJob]) -> None:
    """Make the parts that are missing: draw their crops, ask about them, and write them.

    `key`: see `AnnotatedJob`. `of_photos`, `of_crops`: `prepare` of `make_missing_parts`, for what
    models say of whole photos and of crops. What is drawn or answered when this is interrupted is not
    drawn or asked for again.
    """
    annotated = AnnotatedJob(job.work, key)
    missing = [part for part in parts if not part_folder(job.work, part).is_dir()]
    if missing:
        make_missing_parts(replace(job, work=annotated.drawn, with_rows=False), missing, processes, of_photos)
        make_missing_parts(annotated, parts, processes, of_crops)
    shutil.rmtree(annotated.drawn, ignore_errors=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a text may hold other marks of a line's end
    return [parsed_json(line, str(path), dict[Text, Json]) for line in lines]
