"""The understanding reward: how many of the photo's tags the rough description names. Knows plurals, no synonyms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from realsr_r1.chain.text import parse_chain

# Plurals that no rule gives, of whole words and of the ends of others (woman, policeman, grandchild).
IRREGULAR_PLURALS = {"man": "men", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
                     "child": "children", "person": "people"}


def understanding_reward(completions: Sequence[str], tag: Sequence[Sequence[str] | str | None] | None = None,
                         **columns: Any) -> list[float | None]:
    """Share of the record's tags that `<rough_understand>` names (0..1); 3 of 4 is 0.75.

    `tag`: the tags of each completion, a list of strings, each one tag or several with commas between (the published code's
    form), or one such string. A tag counts as a whole word or phrase, singular or plural, whatever the case; one that
    is listed twice counts once. No such section scores 0.0; a record without tags gets None.
    """
    records = [None] * len(completions) if tag is None else tag
    return [_score(text, tags) for text, tags in zip(completions, records, strict=True)]


def _score(text: str, record: Sequence[str] | str | None) -> float | None:
    tags = _tags(record)
    if not tags:
        return None
    description = parse_chain(text).sections.get("rough_understand", "").lower()
    return sum(_names(description, tag) for tag in tags) / len(tags)


def _tags(record: Sequence[str] | str | None) -> list[str]:
    """The tags in lower case, single spaces, each once."""
    entries = [record] if isinstance(record, str) else record if record is not None else []
    parts = [part for entry in entries if isinstance(entry, str) for part in entry.split(",")]
    return list(dict.fromkeys(tag for tag in (" ".join(part.lower().split()) for part in parts) if tag))


def _names(description: str, tag: str) -> bool:
    *first, last = tag.split(" ")
    forms = "|".join(re.escape(form) for form in _forms(last))
    phrase = r"\s+".join([*map(re.escape, first), f"(?:{forms})"])
    return re.search(rf"(?<!\w){phrase}(?!\w)", description) is not None


def _forms(word: str) -> list[str]:
    """A word in lower case and its plurals: cat, cats; box, boxes; city, cities; leaf, leaves; woman, women."""
    forms = [word, word + "s"]
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.append(word + "es")
    if re.search(r"[^aeiou\W\d]y$", word):
        forms.append(word[:-1] + "ies")
    if re.search(r"fe?$", word):
        forms.append(re.sub(r"fe?$", "ves", word))
    forms += [word[:len(word) - len(end)] + plural for end, plural in IRREGULAR_PLURALS.items() if word.endswith(end)]
    return forms
