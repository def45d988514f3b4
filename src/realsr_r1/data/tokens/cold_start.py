"""Chains for the cold start: texts in several natural wordings, images from the HQ photo, and ids.

Knows records and the processor. `realsr_r1.data.tokens.conversations` reads conversations of other
projects, `realsr_r1.data.tokens.tokenising` writes shards of tokens, and `realsr_r1.sft` trains.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import ChainSpec, Section
from realsr_r1.chain.text import markup_in
from realsr_r1.core.errors import UserError
from realsr_r1.core.texts import split_tags
from realsr_r1.data.tokens.samples import Sample

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor

COLUMNS = ("image", "problem", "tag", "degradation", "hq")


def listed(tags: Sequence[str]) -> str:
    """Return tags as a phrase: "a", "a and b", "a, b and c"."""
    tags = split_tags(tags)
    return " and ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)


def chain_texts(record: Mapping[str, Any], seed: int, index: int,
                spec: ChainSpec | None = None) -> dict[str, str]:
    """Write the text sections of a record's chain: section -> body.

    Degradations have one fixed form; the wording of the rest varies with (seed, index). Raises
    `UserError` for a record that has another number of descriptions than the chain has levels.
    """
    spec = spec or ChainSpec.published()
    choose = random.Random(f"{seed}:{index}")
    tags = listed(record["tag"])
    told = dict(zip(spec.about("description"), _descriptions(record, tags, spec, choose), strict=True))

    def body(section: Section) -> str:
        if section.about == "degradation":
            return ", ".join(record["degradation"])
        usable = [wording for wording in section.wordings if tags or "{tags}" not in wording]
        text = told[section]
        return choose.choice(usable).format(Text=text, text=text[:1].lower() + text[1:], tags=tags)

    return {section.name: body(section) for section in spec.sections if not section.is_image}


def _descriptions(record: Mapping[str, Any], tags: str, spec: ChainSpec, choose: random.Random) -> list[str]:
    """Return the texts of the sections about a description.

    Each tells the record's description of its level, or, where there is none, the record's tags.
    """
    sections, descriptions = spec.about("description"), list(record.get("descriptions") or [])
    if descriptions:
        if len(descriptions) != len(spec.levels):
            raise UserError(f"it has {len(descriptions)} descriptions, and the chain has the levels "
                            f"{', '.join(spec.levels) or 'of none'}: make the dataset with the model's chain "
                            "(realsr-r1 create-json --chain_settings FILE)")
        return [descriptions[spec.levels.index(section.level)] for section in sections]
    return [choose.choice(section.tags_only).format(tags=tags) if tags else section.unknown
            for section in sections]


def encode_records(records: Mapping[str, Sequence[Any]], indices: Sequence[int], processor: ChainProcessor,
                   seed: int) -> list[Sample]:
    """Turn a batch of columns into samples: the question with the LQ photo, and the chain.

    `indices`: the numbers of the records. Raises `UserError` for a record that gives no valid
    chain.
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
        texts = chain_texts(rows[row], seed, index, processor.chain)
        _check_bodies(texts, processor.chain)
        pieces = processor.encode_chain_pieces(texts, chain_spans)
        answer = [("tags" if section is None else section.name, ids) for section, ids in pieces]
        samples.append(Sample.of(prompt, [*answer, ("tags", [processor.layout.end_of_turn])],
                                 processor.chain.parts))
    return samples


def _check_bodies(texts: Mapping[str, str], spec: ChainSpec) -> None:
    """Raise `UserError` where a policy would learn chains that no reward can read."""
    for name, text in texts.items():
        markup = markup_in(text, spec)
        if markup is not None:
            raise UserError(f"its texts put {markup}, a chain's own markup, inside the section {name}")
