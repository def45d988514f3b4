"""Builds a dataset folder from its parts: all of them, or one machine's share.

Knows nothing of photos or flags: create_json.py makes the plan that is carried out here.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import resumable_folder, write_json
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Count, Json, Text, TypedDict
from realsr_r1.data.building.assembly import Contents, assemble, lay_together
from realsr_r1.data.building.parts import PART_FILE, ItemFile, Part, PartFile, finished_parts
from realsr_r1.data.photos.sources import Item
from realsr_r1.data.records import DATASET_FILE, label_balance

FORMAT = 7  # raise when the same arguments would give another dataset
STATE_FILE = "create_json.json"  # what a folder was made from; written last inside it


class Fingerprint(TypedDict, extra_items=Json):
    """What a folder was made from."""

    format: Count


class StateFile(TypedDict, extra_items=Json):
    """`STATE_FILE` of a dataset."""

    fingerprint: Fingerprint
    summary: Text
    records: Count
    bad: list[Text]
    bad_count: Count
    left_out_count: Count


class ShardFile(TypedDict):
    """`STATE_FILE` of one machine's share."""

    fingerprint: Fingerprint
    summary: Text
    parts: Count
    with_lists: bool
    rejected: list[ItemFile]
    left_out: list[ItemFile]


class NothingGood(UserError):
    """There is no good record, and an earlier run's dataset is there, which is kept."""


@dataclass(frozen=True)
class MachineShare:
    """The share of the parts that machine `index` (from 1) of `count` machines makes."""

    index: int
    count: int

    def folder(self, output: Path) -> Path:
        return shards_folder(output) / f"{self.index}-of-{self.count}"

    def parts(self, parts: Sequence[Part]) -> list[Part]:
        return [part for part in parts if part.unit % self.count == self.index - 1]


def shards_folder(output: Path) -> Path:
    """The folder beside `output` in which the machines make their shares."""
    return output.with_name(f"{output.name}.shards")


Page = Callable[[Path, Contents], None]  # writes a page about what a dataset folder holds into it


@dataclass(frozen=True)
class Plan:
    """What is to be built.

    `fingerprint`: stands for the arguments and the input files. `rejected`, `left_out`: items found
    before any part is made. `with_lists`: whether to write SPLIT.json, too. `make(work, parts)`:
    makes those of `parts` that are missing in the folder `work`; returns more rejected items.
    """

    fingerprint: dict[str, Any]
    parts: list[Part]
    rejected: list[Item]
    left_out: list[Item]
    with_lists: bool
    make: Callable[[Path, Sequence[Part]], list[Item]]


def make_dataset(output: Path, plan: Plan, write_page: Page, overwrite: bool = False) -> dict[str, Any]:
    """Build `output`, going on where an earlier call with the same fingerprint was interrupted.

    `overwrite`: replace a dataset that was made from something else. Returns the content of its
    state file.
    """
    with _working_folder(output, plan.fingerprint, overwrite) as work:
        if not (work / STATE_FILE).is_file():
            rejected = plan.rejected + plan.make(work, plan.parts)
            _finish(work, output, plan.fingerprint, rejected, plan.left_out, plan.with_lists, write_page)
        shutil.rmtree(work / "parts", ignore_errors=True)
        return read_json(work / STATE_FILE, StateFile)


def make_shard(output: Path, shard: MachineShare, plan: Plan, overwrite: bool = False) -> dict[str, Any]:
    """Make one machine's share of `output` in a folder beside it.

    Returns the content of its state file.
    """
    mine = shard.parts(plan.parts)
    with _working_folder(shard.folder(output), plan.fingerprint, overwrite) as work:
        if not (work / STATE_FILE).is_file():
            (work / "parts").mkdir(exist_ok=True)
            rejected = plan.rejected + plan.make(work, mine)
            bad = {item.name for item in rejected}
            bad.update(item["name"] for part in finished_parts(work)
                       for item in read_json(part / PART_FILE, PartFile)["rejected"])
            write_json(work / STATE_FILE, {
                "fingerprint": plan.fingerprint,
                "summary": f"shard {shard.index} of {shard.count}: {len(mine)} of "
                           f"{len(plan.parts)} parts" + (
                               f", {len(bad)} bad item(s), which --merge will list" if bad else ""),
                "parts": len(plan.parts), "with_lists": plan.with_lists,
                "rejected": [vars(item) for item in rejected],
                "left_out": [vars(item) for item in plan.left_out]})
        return read_json(work / STATE_FILE, ShardFile)


def merge_shards(output: Path, write_page: Page, overwrite: bool = False) -> dict[str, Any]:
    """Join the finished shares beside `output`. Returns the content of its state file.

    Raises `UserError` that names what is missing, or what was made from other arguments.
    """
    folder = shards_folder(output)
    shards = sorted(path for path in folder.glob("[0-9]*-of-*") if (path / STATE_FILE).is_file())
    if not shards:
        raise UserError(f"--merge finds no finished shard in {folder}; make them with --shard i/n and the "
                        "same --output")
    states = [read_json(shard / STATE_FILE, ShardFile,
                        f"copy the shard {shard.name} again, or make it again") for shard in shards]
    for shard, state in zip(shards, states, strict=True):
        if state["fingerprint"] != states[0]["fingerprint"]:
            raise UserError(f"{shard} and {shards[0]} were made from other arguments or files; remove the "
                            "one that is wrong")
    first = states[0]
    if first["fingerprint"]["format"] != FORMAT:
        raise UserError(f"{folder} was made by another version of realsr-r1 (its format is "
                        f"{first['fingerprint']['format']}, this one's {FORMAT}); make the shards again, or "
                        "merge them with that version")
    there = {part.name for shard in shards for part in finished_parts(shard)}
    if len(there) < first["parts"]:
        raise UserError(f"{first['parts'] - len(there)} of {first['parts']} parts are missing in {folder}, "
                        f"which holds the shards {', '.join(shard.name for shard in shards)}; make the "
                        "others first")
    with _working_folder(output, first["fingerprint"], overwrite) as work:
        if not (work / STATE_FILE).is_file():
            lay_together(shards, work)
            items = {name: [Item(**item) for item in first[name]] for name in ("rejected", "left_out")}
            _finish(work, output, first["fingerprint"], items["rejected"], items["left_out"],
                    first["with_lists"], write_page)
        shutil.rmtree(work / "parts", ignore_errors=True)
        return read_json(work / STATE_FILE, StateFile)


@contextmanager
def _working_folder(output: Path, fingerprint: dict[str, Any], overwrite: bool) -> Iterator[Path]:
    state = output / STATE_FILE
    if state.is_file() and not overwrite:
        made = read_json(state, dict[Text, Json])
        if made.get("records", 1) and made.get("fingerprint") != fingerprint:
            raise UserError(f"{output} was made from other arguments or files; give another --output, or "
                            "--overwrite to replace it")
    try:
        with resumable_folder(output, fingerprint, STATE_FILE) as work:
            try:
                yield work
            except NothingGood:
                shutil.rmtree(work, ignore_errors=True)
                raise
    except PermissionError as error:
        raise UserError(f"{error.filename or output} can't be written ({error.strerror}); give another "
                        "--output") from error
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST):
            raise UserError(f"{error.filename or output} can't be written ({error.strerror}); give another "
                            "--output") from error
        raise


def _finish(work: Path, output: Path, fingerprint: dict[str, Any], rejected: Sequence[Item],
            left_out: Sequence[Item],
            with_lists: bool, write_page: Page) -> None:
    contents = assemble(work, rejected, left_out, with_lists)
    not_used = contents.rejected + contents.left_out
    if contents.counts:
        write_page(work, contents)
    elif (output / DATASET_FILE).is_file():
        raise NothingGood(f"no good item among {len(not_used)}, the first: {not_used[0]}; the dataset that "
                          f"an earlier run made in {output} is left as it is")
    write_json(work / STATE_FILE, {
        "fingerprint": fingerprint, "summary": summary(contents), "records": sum(contents.counts.values()),
        "bad": [str(item) for item in not_used[:1]], "bad_count": len(contents.rejected),
        "left_out_count": len(contents.left_out)})


def summary(contents: Contents) -> str:
    """A line of the records in each split and the photos left out, then train's labels, a line an item."""
    counts = ", ".join(f"{split} {count}" for split, count in contents.counts.items()) or "no records"
    left_out = len(contents.left_out)
    kept_out = f"; {left_out} photo{'s' * (left_out != 1)} left out" if left_out else ""
    return "\n  ".join([counts + kept_out, *label_balance(contents.labels)])
