"""Tags in texts: which tags a record has, and which of them a description names.

Knows plurals, and as synonyms only what a file says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Text
from realsr_r1.core.texts import split_list, split_tags

# Plurals that follow no rule. They also count at the end of longer words (woman, policeman,
# grandchild).
IRREGULAR_PLURALS = {"man": "men", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
                     "child": "children", "person": "people"}


def tags_of(record: Sequence[str] | str | None) -> list[str]:
    """Return a record's tags in lower case with single spaces, without repeats.

    They are a list of strings, each with one tag or several (`core.texts.split_tags`), or one such
    string.
    """
    return list(dict.fromkeys(map(_normal, split_tags(record if record is not None else []))))


def first_tags(record: Sequence[str] | str | None) -> list[str]:
    """Return the tags of a record's first entry in lower case, divided by commas, with repeats.

    The published code reads only the first line of a photo's tag file. A record that is one string
    is its own first entry.
    """
    entries = [record] if isinstance(record, str) else record if isinstance(record, (list, tuple)) else []
    first = entries[0] if entries else None
    return split_list(first.lower()) if isinstance(first, str) else []


class Tags:
    """What names a tag: its words and those of its synonyms. Descriptions are in lower case.

    `synonyms`: tag -> words that stand for the same thing; by default none. `vocabulary`: the tags
    that a photo can have, for `claims`.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]] | None = None, vocabulary: Sequence[str] = ()):
        self._words = {tag: (tag, *words) for tag, words in (synonyms or {}).items()}
        self._thing = {word: tag for tag, words in self._words.items() for word in words}
        self.vocabulary = self.things(vocabulary)
        self._phrases = {tuple(_tokens(phrase)): thing for thing in self.vocabulary
                         for word in self._words_of(thing) for phrase in _phrases(word)}
        self._longest = max(map(len, self._phrases), default=0)

    def things(self, tags: Sequence[str]) -> list[str]:
        """Tags without repeats, where synonyms are one."""
        return list(dict.fromkeys(self._thing.get(tag, tag) for tag in tags))

    def names(self, description: str, thing: str) -> bool:
        """Whether a description names the thing: one of its words, whole, in singular or plural."""
        return any(_is_named(description, word) for word in self._words_of(thing))

    def claims(self, description: str) -> set[str]:
        """The things of the vocabulary that a description names.

        It is read from left to right, and the longest tag at a place counts: a "fire truck" is
        neither a "truck" nor a "fire".
        """
        tokens, found, place = _tokens(description), set(), 0
        while place < len(tokens):
            for end in range(min(place + self._longest, len(tokens)), place, -1):
                thing = self._phrases.get(tuple(tokens[place:end]))
                if thing is not None and _stands_alone(tokens, place, end):
                    found.add(thing)
                    break
            else:
                end = place + 1
            place = end
        return found

    def _words_of(self, thing: str) -> tuple[str, ...]:
        return self._words.get(thing, (thing,))


def read_synonyms(path: str | None) -> dict[str, list[str]]:
    """Read synonyms from YAML or JSON (`TAG: [WORD, ...]`), none where `path` is None.

    Raises `UserError` that names a file that can't be used, and a word of two tags.
    """
    if path is None:
        return {}
    values = read_yaml(path, dict[Text, list[Text]], "--tag_synonyms",
                       "it has lines `TAG: [WORD, ...]`, all texts (put yes, no and numbers in quotes)")
    synonyms = {_normal(tag): [_normal(word) for word in words] for tag, words in values.items()}
    for word, count in Counter(word for tag, words in synonyms.items() for word in {tag, *words}).items():
        if not word or count > 1:
            raise UserError(f"{path} (--tag_synonyms): {word!r} stands for two tags, or is empty; each word "
                            "belongs to one tag")
    return synonyms


def _is_named(description: str, tag: str) -> bool:
    *first, last = tag.split(" ")
    forms = "|".join(re.escape(form) for form in _forms(last))
    phrase = r"\s+".join([*map(re.escape, first), f"(?:{forms})"])
    return re.search(rf"(?<!\w){phrase}(?!\w)", description) is not None


def _phrases(tag: str) -> list[str]:
    """A tag in singular and plural."""
    first, last = tag[:tag.rfind(" ") + 1], tag[tag.rfind(" ") + 1:]
    return [first + form for form in _forms(last)]


def _tokens(text: str) -> list[str]:
    """The words and signs of a text, with one space for white space between them."""
    return [token if token.strip() else " " for token in re.findall(r"\w+|\s+|[^\w\s]", text)]


def _stands_alone(tokens: Sequence[str], start: int, end: int) -> bool:
    """Whether no word touches either end: "c++" in "c++11" does not stand alone."""
    return not any(0 <= at < len(tokens) and re.match(r"\w", tokens[at]) for at in (start - 1, end))


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
