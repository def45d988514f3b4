"""Chains to train the cold start on: bodies in several natural wordings, images from the HQ photo, ids for both.

Knows records and the processor; conversations of other projects are read in `realsr_r1.data.tokens.conversations`, shards of
tokens are written in `realsr_r1.data.tokens.tokenising`, and the training itself is in `realsr_r1.sft`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.text import SECTIONS, markup_in
from realsr_r1.core.errors import UserError
from realsr_r1.data.tokens.samples import Piece, Sample

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor

# {tags}: "a, b and c"; {Text}: the description as the dataset has it; {text}: the same with a lower-case first letter.
ROUGH_WORDINGS = (
    "{Text}", "The photo shows {tags}.", "I can see {tags}.", "At first sight, {text}", "{Text} Seen here: {tags}.",
    "Although the photo is degraded, I make out {tags}.", "Roughly, {text}", "What is left of the scene: {tags}.")
MIDDLE_WORDINGS = (
    "{Text}", "Looking closer, {text}", "With more detail, {text}", "Now that it is clearer, {text}",
    "On a second look, {text}", "{Text} In it: {tags}.")
FINAL_WORDINGS = (
    "{Text}", "In full detail, {text}", "At last, {text}", "Restored, it is plain to see: {text}", "All in all, {text}",
    "{Text} Visible in detail: {tags}.")
# Stand for descriptions where a record has tags only: rough, middle, final.
TAG_WORDINGS = (
    ("A photo of {tags}.", "A picture with {tags}.", "Something like {tags}."),
    ("A photo in which {tags} can be told apart.", "A view of {tags}, with clearer outlines.", "A photo of {tags}, half restored."),
    ("A clear photo of {tags}.", "A sharp picture of {tags}, with all textures.", "A photo of {tags}, restored in detail."))
NOTHING_KNOWN = ("A photo.", "A photo with its outlines.", "A clear photo.")  # without tags and descriptions
COLUMNS = ("image", "problem", "tag", "degradation", "hq")


def listed(tags: Sequence[str]) -> str:
    """Tags as a phrase: "a", "a and b", "a, b and c"."""
    tags = [tag.strip() for item in tags for tag in item.split(",") if tag.strip()]
    return " and ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)


def chain_texts(record: Mapping[str, Any], seed: int, index: int) -> dict[str, str]:
    """The four text bodies of a record's chain. The degradation is canonical, the rest varies with (seed, index)."""
    choose = random.Random(f"{seed}:{index}")
    tags = listed(record["tag"])
    descriptions = list(record.get("descriptions") or [])
    if not descriptions:
        descriptions = [choose.choice(wordings).format(tags=tags) for wordings in TAG_WORDINGS] if tags else NOTHING_KNOWN

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
                   seed: int) -> list[Sample]:
    """A batch of columns -> a sample each: the question with the LQ photo, and the chain. `indices`: numbers of the records.

    Raises `UserError` for a record that makes no chain.
    """
    rows = [{name: records[name][row] for name in records} for row in range(len(indices))]
    finals = [processor.fit(row["hq"]) for row in rows]
    chain_images = [processor.chain_images(final) for final in finals]
    spans = processor.encode_images([processor.fit(row["image"]) for row in rows]
                                    + [image for images in chain_images for image in images.values()])
    samples = []
    for row, index in enumerate(indices):
        first = len(rows) + row * len(chain_images[row])
        chain_spans = dict(zip(chain_images[row], spans[first:first + len(chain_images[row])], strict=True))
        prompt = processor.prompt_from_span(spans[row], rows[row]["problem"])
        texts = chain_texts(rows[row], seed, index)
        _check_bodies(texts)
        ids = processor.encode_chain_pieces(texts, chain_spans)
        answer = [piece for number, name in enumerate(SECTIONS) for piece in _section(name, ids[3 * number:3 * number + 3])]
        samples.append(Sample.of(prompt, [*answer, ("tags", [processor.layout.end_of_turn])]))
    return samples


def _check_bodies(texts: Mapping[str, str]) -> None:
    """Raise `UserError` where a policy would learn chains that no reward can read."""
    for name, text in texts.items():
        markup = markup_in(text)
        if markup is not None:
            raise UserError(f"its texts put {markup}, a chain's own markup, inside the section {name}")


def _section(name: str, ids: Sequence[list[int]]) -> list[Piece]:
    opening, body, closing = ids
    return [("tags", opening), (name, body), ("tags", closing)]
