"""Tags in texts: which tags a record has, and which of them a description names.

Knows plurals, and as synonyms only what a file says.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import is_text, read_yaml

# Plurals that follow no rule. They also count at the end of longer words (woman, policeman,
# grandchild).
IRREGULAR_PLURALS = {"man": "men", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
                     "child": "children", "person": "people"}


def tags_of(record: Sequence[str] | str | None) -> list[str]:
    """Return a record's tags in lower case with single spaces, without repeats.

    They are a list of strings, each with one tag or several divided by commas, or one such string.
    """
    entries = [record] if isinstance(record, str) else record if record is not None else []
    parts = [part for entry in entries if isinstance(entry, str) for part in entry.split(",")]
    return list(dict.fromkeys(tag for tag in map(_normal, parts) if tag))


class Tags:
    """What names a tag: its words, and those of its synonyms.

    `synonyms`: tag -> words that stand for the same thing; by default none. Descriptions are texts
    in lower case.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]] | None = None):
        self._words = {tag: (tag, *words) for tag, words in (synonyms or {}).items()}
        self._thing = {word: tag for tag, words in self._words.items() for word in words}

    @classmethod
    def from_file(cls, path: str | None) -> Tags:
        """Read synonyms from YAML or JSON (`TAG: [WORD, ...]`), none where `path` is None.

        Raises `UserError` that names a file that can't be used, and a word of two tags.
        """
        if path is None:
            return cls()
        values = read_yaml(path, "--tag_synonyms")
        if not isinstance(values, dict) or not all(
                isinstance(words, list) and all(map(is_text, (tag, *words)))
                for tag, words in values.items()):
            raise UserError(f"{path} (--tag_synonyms) must hold lines `TAG: [WORD, ...]`, all of them texts "
                            "(put yes, no and numbers in quotes)")
        synonyms = {_normal(tag): [_normal(word) for word in words] for tag, words in values.items()}
        for word, count in Counter(word for tag, words in synonyms.items() for word in {tag, *words}).items():
            if not word or count > 1:
                raise UserError(f"{path} (--tag_synonyms): {word!r} stands for two tags, or is empty; each "
                                "word belongs to one tag")
        return cls(synonyms)

    def things(self, tags: Sequence[str]) -> list[str]:
        """Tags without repeats, where synonyms are one."""
        return list(dict.fromkeys(self._thing.get(tag, tag) for tag in tags))

    def names(self, description: str, thing: str) -> bool:
        """Whether a description names the thing, by any of its words."""
        return any(_is_named(description, word) for word in self._words.get(thing, (thing,)))

    def named_among(self, description: str, right: Sequence[str], vocabulary: Sequence[str]) -> int:
        """How many things of `vocabulary` a description names that aren't among `right`.

        A word inside a longer one that was named already is not named again: a "fire truck" is
        neither a "truck" nor a "fire".
        """
        words = [word for thing in right for word in self._words.get(thing, (thing,))]
        for word in sorted(words, key=len, reverse=True):
            description = _without(description, word)
        others = set(vocabulary).difference(right)
        words = [(word, thing) for thing in others for word in self._words.get(thing, (thing,))]
        found = set()
        for word, thing in sorted(words, key=lambda pair: (-len(pair[0]), pair)):
            if _is_named(description, word):
                found.add(thing)
                description = _without(description, word)
        return len(found)


def _is_named(description: str, tag: str) -> bool:
    """Whether a text has the tag as a whole word or phrase, in singular or plural."""
    return _may_be_named(description, tag) and _pattern(tag).search(description) is not None


def _without(description: str, tag: str) -> str:
    return _pattern(tag).sub("\n", description) if _may_be_named(description, tag) else description


def _may_be_named(description: str, tag: str) -> bool:
    """A fast first look: a vocabulary has thousands of tags, and a description names few."""
    return any(start in description for start in _starts(tag))


@functools.lru_cache(maxsize=100_000)
def _starts(tag: str) -> tuple[str, ...]:
    """Texts of which any description that names the tag has one: its first word, or its forms."""
    first, _, more = tag.partition(" ")
    return (first,) if more else tuple(_forms(first))


@functools.lru_cache(maxsize=100_000)
def _pattern(tag: str) -> re.Pattern[str]:
    *first, last = tag.split(" ")
    forms = "|".join(re.escape(form) for form in _forms(last))
    phrase = r"\s+".join([*map(re.escape, first), f"(?:{forms})"])
    return re.compile(rf"(?<!\w){phrase}(?!\w)")


def _normal(tag: str) -> str:
    return " ".join(tag.lower().split())


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
