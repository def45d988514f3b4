"""What a text must be to stand in a chain: that of a photo's tag, of a description, of a label, of
a question.

Knows texts only. Where they are read is the readers' business (data.records, data.photos.sidecars).
"""

from __future__ import annotations

import unicodedata

from realsr_r1.chain.text import IMAGE, markup_in
from realsr_r1.core.errors import UserError

# Of one. A tag is a few words, a description a paragraph: a longer one is of a model that didn't
# end, or a file of something else, and a single one can make a chain too long to train on.
MOST_CHARACTERS = {"tag": 100, "description": 2000, "label": 100, "question": 2000}


def check_question(text: str, where: str) -> None:
    """Raise `UserError` for a question that makes no prompt: one photo's place at most, and else as
    `check_text` says.
    """
    check_text(text.replace(IMAGE, "", 1), "question", where)
    if not text.strip():
        raise UserError(f"{where} is empty")


def check_text(text: str, kind: str, where: str) -> None:
    """Raise `UserError` for a text that is too long, or that holds control characters, or a chain's
    own markup.

    `kind`: of `MOST_CHARACTERS`. `where`: names the file, and the line or record in it.
    """
    if len(text) > MOST_CHARACTERS[kind]:
        raise UserError(f"{where} has a {kind} of {len(text)} characters; one has at most "
                        f"{MOST_CHARACTERS[kind]}")
    odd = next((character for character in text if unicodedata.category(character) == "Cc"
                and not character.isspace()), None)
    if odd is not None:
        raise UserError(f"{where} has a {kind} with the control character {odd!r}")
    markup = markup_in(text)
    if markup is not None:
        raise UserError(f"{where} has a {kind} with {markup} in it, which is a chain's own markup")
