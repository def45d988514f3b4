"""Joins the parts of a dataset:

JSON lists, a DatasetDict, and lists of the items that were not used.

The parts' Arrow files become the files of the DatasetDict as they are. Everything else is read and
written line by line, so memory does not grow with the dataset, and the same parts give the same
bytes. What several machines made is first brought together in one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file, write_json
from realsr_r1.core.json_yaml import parsed_json, read_json
from realsr_r1.core.schema import Json, Text
from realsr_r1.core.texts import split_tags
from realsr_r1.data.building.arrow_rows import write_info
from realsr_r1.data.building.parts import PART_FILE, SPLITS, PartFile, finished_parts
from realsr_r1.data.photos.sources import Item
from realsr_r1.data.records import DATASET_FILE, Record, label_counts

REJECTED_FILE, LEFT_OUT_FILE = "rejected.jsonl", "left_out.jsonl"


@dataclass
class Contents:
    """What a dataset holds, for its page and its summary.

    `counts`: records in each split. `labels`: counts of the degradation labels in train, as
    `label_counts` gives them. `tags`: for each tag, in how many photos of train it occurs.
    `photos`: photos in each split. `rejected` and `left_out`: items that were not used.
    """

    counts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    tags: Counter[str] = field(default_factory=Counter)
    photos: dict[str, int] = field(default_factory=dict)
    rejected: list[Item] = field(default_factory=list)
    left_out: list[Item] = field(default_factory=list)


def assemble(work: Path, rejected: Iterable[Item], left_out: Iterable[Item], with_lists: bool) -> Contents:
    """Write the dataset's files into `work`, where all parts are made.

    May be called again after an interruption.

    `rejected`, `left_out`: items that were found before any part was made. `with_lists`: whether to
    write SPLIT.json, too. When there is no good record, the returned `counts` are empty, and only
    the lists of items are written.
    """
    parts = finished_parts(work)
    notes = [read_json(part / PART_FILE, PartFile) for part in parts]
    contents = Contents()
    for name, before in (("rejected", rejected), ("left_out", left_out)):
        items = [*before, *(Item(**item) for note in notes for item in note[name])]
        items = list({(item.name, item.reason): item for item in items}.values())
        setattr(contents, name, items)
        write_items(work / (REJECTED_FILE if name == "rejected" else LEFT_OUT_FILE), items)
    splits = [split for split in SPLITS if any((part / f"{split}.jsonl").is_file() for part in parts)]
    if not splits:
        return contents
    contents.counts = dict.fromkeys(SPLITS if with_lists else splits, 0)
    for split in splits:
        _assemble_split(work, split, parts, contents, with_lists)
    write_json(work / DATASET_FILE, {"splits": splits})
    return contents


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write one JSON line for each item. Without items there is no file."""
    path.unlink(missing_ok=True)
    if items:
        with atomic_file(path) as partial:
            partial.write_text("".join(json.dumps(vars(item), ensure_ascii=False) + "\n" for item in items),
                               encoding="utf-8")


def _assemble_split(work: Path, split: str, parts: Sequence[Path], contents: Contents,
                    with_lists: bool) -> None:
    parts = [part for part in parts if (part / f"{split}.jsonl").is_file()]
    folder = work / split
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        link_or_copy(part / f"{split}.arrow", folder / name)
    first = parsed_json(next(_lines(parts, f"{split}.jsonl")), f"{split}.jsonl", dict[Text, Json])
    digest = hashlib.blake2b(digest_size=8)
    with _list_writer(work / f"{split}.json" if with_lists else None) as add:
        seen: dict[str, None] = {}

        def records() -> Iterator[Record]:
            photo, its_tags = None, set[str]()  # the photo whose crops come now, and their tags so far
            for line in _lines(parts, f"{split}.jsonl"):
                digest.update(line.encode())
                record = parsed_json(line, f"{split}.jsonl", dict[Text, Json])
                contents.counts[split] += 1
                source = record.get("source", record["image_path"])
                if split == "train" and (source == photo or source not in seen):
                    its_tags = its_tags if source == photo else set()
                    tags = set(split_tags(record["tag"]))
                    contents.tags.update(tags - its_tags)
                    its_tags |= tags
                seen[source], photo = None, source
                add(record)
                yield record

        counts = label_counts(records())
    contents.photos[split] = len(seen)
    if split == "train":
        contents.labels = counts
    if any((part / f"{split}.parameters.jsonl").is_file() for part in parts):
        with (atomic_file(work / f"{split}.parameters.jsonl") as partial,
              open(partial, "w", encoding="utf-8") as file):
            file.writelines(_lines(parts, f"{split}.parameters.jsonl"))
    # `datasets.load_from_disk` reads two more files. Letting `datasets` write them would copy all
    # data.
    write_info(folder, first)
    write_json(folder / "state.json", {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": digest.hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None})


def _lines(parts: Sequence[Path], name: str) -> Iterator[str]:
    for part in parts:
        with open(part / name, encoding="utf-8", newline="\n") as file:
            yield from file


@contextmanager
def _list_writer(path: Path | None) -> Iterator[Callable[[Record], None]]:
    """Yield a function that adds a record to the JSON list at `path`, or nowhere without a path.

    The bytes are those that `write_json` would write for the whole list.
    """
    if path is None:
        yield lambda record: None
        return
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        before = "[\n  "

        def add(record: Record) -> None:
            nonlocal before
            file.write(before + json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n  "))
            before = ",\n  "

        yield add
        file.write("\n]\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the disk has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# --- several machines ---

def lay_together(shards: Sequence[Path], work: Path) -> None:
    """Bring the parts and image files of finished shares together under `work`.

    They are hard links where the disk has them, and take no more space then. Raises `UserError`
    that names a file which was not copied completely from the machine that made it.
    """
    for shard in shards:
        for part in finished_parts(shard):
            again = f"copy the shard {shard.name} again, or make it again where it was made"
            note = read_json(part / PART_FILE, PartFile, again)
            for base, files in ((part, note["files"]), (shard, note["images"])):
                for name, size in files.items():
                    _check_whole(base / name, size, again)
                    link_or_copy(base / name, work / (base / name).relative_to(shard))
            link_or_copy(part / PART_FILE, work / "parts" / part.name / PART_FILE)


def _check_whole(path: Path, size: int, again: str) -> None:
    """Raise `UserError` unless the file has its size and does not begin with eight zeros.

    A machine that lost power may leave files of the right size that are full of zeros.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        what = "is missing" if found is None else f"has {found} bytes, and had {size} when it was made"
        raise UserError(f"{path} {what}; {again}")
    with open(path, "rb") as file:
        if size and not any(file.read(8)):
            raise UserError(f"{path} holds zeros only; {again}")
