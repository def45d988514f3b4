"""Which photos a folder of restored ones holds already, by the record that lies beside each result.

The record names the model, the flags and the photo's content, so a photo that was replaced under its
name is restored again, and one that was only copied or touched is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import content_hash
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.picture_writer import WRITTEN
from realsr_r1.core.schema import Json, Text

CHAINS_FOLDER, MADE_WITH_FILE = "chains", "made_with.json"
PHOTO = "photo"  # the record's key with the hash of the photo's file
DONE, UNRECORDED = "done", "unrecorded"
CHANGED, UNKNOWN = "changed", "unknown"  # to be restored again
# What is known of a result -> how it is said.
SAID = {DONE: "{count} of {all} photos are restored in {output} already",
        UNRECORDED: "{count} of {all} photos have a result in {output} without a record of what it was made "
                    "from; it is kept (delete it to have the photo restored)",
        CHANGED: "{count} of {all} photos were changed since they were restored in {output}: they are "
                 "restored again",
        UNKNOWN: "{count} of {all} photos were restored in {output} by an older version, which didn't note "
                 "the photo's content: they are restored again"}


def to_restore(photos: Mapping[Path, str], output: Path, format: str,
               made_with: Mapping[str, Any]) -> list[tuple[int, Path]]:
    """Return the photos that are to be restored, each with its place among all, and say how many aren't.

    `photos`: their files and what each is called in `output`. `made_with`: the model and the flags.
    Raises `UserError` where one was restored with others.
    """
    found = {path: _known(path, output, name, format, made_with) for path, name in photos.items()}
    for state, words in SAID.items():
        count = sum(known == state for known in found.values())
        if count:
            print(words.format(count=count, all=len(photos), output=output))
    return [(place, path) for place, path in enumerate(photos) if found[path] not in (DONE, UNRECORDED)]


def _known(photo: Path, output: Path, name: str, format: str, made_with: Mapping[str, Any]) -> str | None:
    """Return what is known of a photo's result, a key of `SAID`; None where there is no result."""
    file = output / f"{name}.{format}"
    if file.is_dir():
        raise UserError(f"{file} is a folder, and a photo is to be written there; give another --output")
    # In whatever format, for the results of a photo share the folder of its chain.
    found = [one for one in (output / f"{name}.{each}" for each in WRITTEN) if one.is_file()]
    record = output / CHAINS_FOLDER / name / MADE_WITH_FILE
    if not record.is_file():
        return UNRECORDED if file in found else None
    held = read_json(record, dict[Text, Json])
    content = held.pop(PHOTO, None)
    if found and held != made_with:
        raise UserError(f"{found[0]} was restored by another model or with other flags ({record}); give "
                        "another --output, or delete this one")
    if file not in found:
        return None
    if content is None:
        return UNKNOWN
    try:
        return DONE if content == content_hash(photo) else CHANGED
    except UserError:  # it can't be read any more, which is said when its turn comes
        return None
