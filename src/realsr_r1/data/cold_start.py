"""Chains to train the cold start on: bodies in several natural wordings, images from the HQ photo, ids for both.

Knows records and the processor; the training itself is in `realsr_r1.sft`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from realsr_r1.processing import ChainProcessor

# {tags}: "a, b and c"; {text}: the description as the dataset has it, first letter lower case.
ROUGH_WORDINGS = ("{Text}", "The photo shows {tags}.", "I can see {tags}.", "At first sight, {text}")
MIDDLE_WORDINGS = ("{Text}", "Looking closer, {text}", "With more detail, {text}")
FINAL_WORDINGS = ("{Text}", "In full detail, {text}", "At last, {text}")
COLUMNS = ("image", "problem", "tag", "degradation", "hq")


def listed(tags: Sequence[str]) -> str:
    """Tags as a phrase: "a", "a and b", "a, b and c"."""
    tags = [tag.strip() for item in tags for tag in item.split(",") if tag.strip()]
    return " and ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)


def chain_texts(record: Mapping[str, Any], seed: int, index: int) -> dict[str, str]:
    """The four text bodies of a record's chain. The degradation is canonical, the rest varies with (seed, index)."""
    choose = random.Random(f"{seed}:{index}")
    tags = listed(record["tag"])
    descriptions = list(record.get("descriptions") or []) or [f"A photo of {tags}." if tags else "A photo."] * 3

    def worded(wordings: Sequence[str], text: str) -> str:
        usable = [wording for wording in wordings if tags or "{tags}" not in wording]
        return choose.choice(usable).format(Text=text, text=text[:1].lower() + text[1:], tags=tags)

    return {
        "degradation": ", ".join(record["degradation"]),
        "rough_understand": worded(ROUGH_WORDINGS, descriptions[0]),
        "middle_understand": worded(MIDDLE_WORDINGS, descriptions[1]),
        "final_understand": worded(FINAL_WORDINGS, descriptions[2]),
    }


def encode_records(records: Mapping[str, Sequence[Any]], indices: Sequence[int], processor: ChainProcessor,
                   seed: int) -> dict[str, list[Any]]:
    """A batch of columns -> `input_ids` (prompt + answer) and `prompt_length`, for `datasets.Dataset.map`."""
    rows = [{name: records[name][row] for name in records} for row in range(len(indices))]
    finals = [processor.fit(row["hq"]) for row in rows]
    chain_images = [processor.chain_images(final) for final in finals]
    spans = processor.encode_images([processor.fit(row["image"]) for row in rows]
                                    + [image for images in chain_images for image in images.values()])
    encoded: dict[str, list[Any]] = {"input_ids": [], "prompt_length": []}
    for row, index in enumerate(indices):
        prompt = processor.prompt_from_span(spans[row], rows[row]["problem"])
        first = len(rows) + row * len(chain_images[row])
        chain_spans = spans[first:first + len(chain_images[row])]
        answer = processor.encode_chain(chain_texts(rows[row], seed, index),
                                        dict(zip(chain_images[row], chain_spans, strict=True)))
        encoded["input_ids"].append(numpy.asarray(prompt + answer, dtype=numpy.int32))
        encoded["prompt_length"].append(len(prompt))
    return encoded
