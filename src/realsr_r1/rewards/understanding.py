"""The understanding reward: how many of the photo's tags the rough description names.

Knows plurals, no synonyms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.texts import split_tags
from realsr_r1.rewards.reward import Reward, bound

# Plurals that follow no rule. They also count at the end of longer words (woman, policeman,
# grandchild).
IRREGULAR_PLURALS = {"man": "men", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
                     "child": "children", "person": "people"}


def understanding_reward(completions: Sequence[str], tag: Sequence[Sequence[str] | str | None] | None = None,
                         spec: ChainSpec | None = None, **columns: Any) -> list[float | None]:
    """Return the share of the record's tags that the first description names (0..1).

    3 of 4 tags give 0.75. The first description of the published chain, which is the default
    `spec`, is `<rough_understand>`.

    `tag`: the tags of each completion. They are a list of strings, each with one tag or several
    (the published code's form; `core.texts.split_tags`), or one such string. A tag counts as a whole
    word or phrase, in singular or plural, and case doesn't matter. A tag that is listed twice counts
    once. An answer without such a section scores 0.0. A record without tags gets None.
    """
    section = (spec or ChainSpec.published()).about("description")[0]
    records = [None] * len(completions) if tag is None else tag
    bodies = [parse_chain(text, spec).sections.get(section.name, "") for text in completions]
    return [_score(body.lower(), tags) for body, tags in zip(bodies, records, strict=True)]


def _score(description: str, record: Sequence[str] | str | None) -> float | None:
    tags = _tags(record)
    if not tags:
        return None
    return sum(_names(description, tag) for tag in tags) / len(tags)


def _tags(record: Sequence[str] | str | None) -> list[str]:
    """Return the tags in lower case with single spaces, without repeats."""
    return list(dict.fromkeys(tag.lower() for tag in split_tags(record if record is not None else [])))


def _names(description: str, tag: str) -> bool:
    *first, last = tag.split(" ")
    forms = "|".join(re.escape(form) for form in _forms(last))
    phrase = r"\s+".join([*map(re.escape, first), f"(?:{forms})"])
    return re.search(rf"(?<!\w){phrase}(?!\w)", description) is not None


def _forms(word: str) -> list[str]:
    """Return a word in lower case and its plurals.

    For example: cat, cats; box, boxes; city, cities; leaf, leaves; woman, women.
    """
    forms = [word, word + "s"]
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.append(word + "es")
    if re.search(r"[^aeiou\W\d]y$", word):
        forms.append(word[:-1] + "ies")
    if re.search(r"fe?$", word):
        forms.append(re.sub(r"fe?$", "ves", word))
    forms += [word[:len(word) - len(end)] + plural for end, plural in IRREGULAR_PLURALS.items()
              if word.endswith(end)]
    return forms


UNDERSTANDING = Reward("understanding", "description", lambda settings: ("tag",),
                       lambda settings: bound(understanding_reward, spec=settings.chain))
