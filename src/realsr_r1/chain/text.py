"""The vision-language chain of thought (VLCoT): its seven sections, the question, parsing and rendering.

Knows text only: no tokens, no images, no torch. An image stands in the text as `IMAGE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SECTIONS = ("degradation", "rough_understand", "rough_image", "middle_understand", "middle_image",
            "final_understand", "final_image")
IMAGE_SECTIONS = ("rough_image", "middle_image", "final_image")
TEXT_SECTIONS = tuple(name for name in SECTIONS if name not in IMAGE_SECTIONS)

IMAGE = "<|image|>"
ESCAPED_IMAGE = "<\\|image|>"  # how the same characters look when a policy writes them as text

PROBLEM = ("Name the degradation of this photo, then describe and restore it in three steps, from rough to final.")

_TAG = re.compile(r"<(/?)(" + "|".join(SECTIONS) + r")>")
_MARKUP = re.compile(f"{_TAG.pattern}|{re.escape(IMAGE)}")
_WHOLE = re.compile(r"\s*" + r"\s*".join(
    rf"<{name}>(?P<{name}>.*?)</{name}>" for name in SECTIONS) + r"\s*", re.DOTALL)


def open_tag(section: str) -> str:
    """`<section>`."""
    return f"<{section}>"


def close_tag(section: str) -> str:
    """`</section>`."""
    return f"</{section}>"


@dataclass(frozen=True)
class Chain:
    """What `parse_chain` found.

    `sections`: name -> body without outer white space, for every section that is opened and closed; of a repeated one,
    the first. `is_well_formed`: the seven sections, each once, in order, closed, nothing but white space outside them,
    exactly one image in each image section, and no image or section tag inside a text.
    """

    sections: dict[str, str]
    is_well_formed: bool


def parse_chain(text: str) -> Chain:
    """Read a completion as a chain. Never raises, whatever the text."""
    text = text if isinstance(text, str) else ""
    sections: dict[str, str] = {}
    for name in SECTIONS:
        start = text.find(open_tag(name))
        end = text.find(close_tag(name), start) if start >= 0 else -1
        if end >= 0:
            sections[name] = text[start + len(open_tag(name)):end].strip()
    return Chain(sections, _is_well_formed(text))


def _is_well_formed(text: str) -> bool:
    tags = [(closing, name) for closing, name in _TAG.findall(text)]
    if tags != [(closing, name) for name in SECTIONS for closing in ("", "/")]:
        return False
    match = _WHOLE.fullmatch(text)
    if match is None:
        return False
    return all(body.strip() == IMAGE if name in IMAGE_SECTIONS else IMAGE not in body
               for name, body in match.groupdict().items())


def markup_in(text: str) -> str | None:
    """The first tag of a section or place of an image in `text`, which may have none as the body of a text section."""
    found = _MARKUP.search(text)
    return found[0] if found else None


def render_chain(sections: Mapping[str, str]) -> str:
    """Write a chain from the bodies of its text sections; image sections get `IMAGE`. Raises `KeyError` on a missing text."""
    return "".join(piece for piece, _ in chain_pieces(sections))


def chain_pieces(sections: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """The chain as (text, image section or None) pieces: tags and bodies apart, as they are tokenised.

    An image's piece is `(IMAGE, section)`.
    """
    pieces: list[tuple[str, str | None]] = []
    for name in SECTIONS:
        pieces.append((open_tag(name), None))
        pieces.append((IMAGE, name) if name in IMAGE_SECTIONS else (sections[name], None))
        pieces.append((close_tag(name), None))
    return pieces
