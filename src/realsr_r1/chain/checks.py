"""Checks for every text that is to stand in a chain: a tag, a description, a label or a question.

This module looks at the texts only. The modules that read them from files call it (data.records,
data.photos.sidecars).
"""

from __future__ import annotations

import unicodedata

from realsr_r1.chain.text import IMAGE, markup_in
from realsr_r1.core.errors import UserError

# The most characters that one text may have. A tag is a few words and a description a paragraph. A
# longer text comes from a model that didn't stop or from a wrong file, and a single one can make a
# chain too long to train on.
MOST_CHARACTERS = {"tag": 100, "description": 2000, "label": 100, "question": 2000}


def check_question(text: str, where: str) -> None:
    """Raise `UserError` for a text that can't be a question.

    A question may name the chain's tags, as the published one does, and the place of the photo at
    most once.
    """
    _check_characters(text, "question", where)
    count = text.count(IMAGE)
    if count > 1:
        raise UserError(f"{where} has {count} times {IMAGE}; a question has one photo, so at most one")
    if not text.replace(IMAGE, "").strip():
        raise UserError(f"{where} is empty")


def check_text(text: str, kind: str, where: str) -> None:
    """Raise `UserError` for a text that is too long or holds control characters or markup.

    Markup is a chain's own (tags, `<|image|>`). `kind`: a key of `MOST_CHARACTERS`. `where`: the
    file and the line or record in it, for the message.
    """
    _check_characters(text, kind, where)
    markup = markup_in(text)
    if markup is not None:
        raise UserError(f"{where} has a {kind} with {markup} in it, which is a chain's own markup")


def _check_characters(text: str, kind: str, where: str) -> None:
    if len(text) > MOST_CHARACTERS[kind]:
        raise UserError(f"{where} has a {kind} of {len(text)} characters; one has at most "
                        f"{MOST_CHARACTERS[kind]}")
    odd = next((character for character in text if unicodedata.category(character) == "Cc"
                and not character.isspace()), None)
    if odd is not None:
        raise UserError(f"{where} has a {kind} with the control character {odd!r}")
