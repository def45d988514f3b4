"""A chain as text: reading a completion by its `ChainSpec`, and writing one.

An image stands in the text as `IMAGE`. Knows text only: no tokens, no images, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from realsr_r1.chain.spec import IMAGE, ChainSpec, Section

ESCAPED_IMAGE = "<\\|image|>"  # what `IMAGE` becomes when a policy writes it as plain text
SECTIONS = ChainSpec.published().names()


@dataclass(frozen=True)
class Chain:
    """The result of `parse_chain`.

    `sections`: name -> body without outer white space, for every section that was found. A tagged
    section counts as found when it is opened and closed; of a repeated one, the first counts.
    `is_well_formed`: all sections of the spec are there once and in order, only white space is
    outside them, each image section has exactly one image, and no text has an image or a tag
    inside.
    """

    sections: dict[str, str]
    is_well_formed: bool


def parse_chain(text: str, spec: ChainSpec | None = None) -> Chain:
    """Read a completion as a chain of `spec` (the published one by default).

    Never raises, whatever the text.
    """
    text, spec = text if isinstance(text, str) else "", spec or ChainSpec.published()
    found: dict[str, str] = {}
    for section in spec.sections:
        if section.tagged:
            start = text.find(section.opening)
            end = text.find(section.closing, start) if start >= 0 else -1
            if end >= 0:
                found[section.name] = text[start + len(section.opening):end].strip()
    for run, between in _untagged(text, spec):
        found.update(_read_untagged(run, between))
    return Chain({name: found[name] for name in spec.names() if name in found}, _is_well_formed(text, spec))


def _untagged(text: str, spec: ChainSpec) -> Iterator[tuple[list[Section], str]]:
    """Yield each run of sections without tags, and the text between the tags around it."""
    run: list[Section] = []
    start = 0
    for section in (*spec.sections, None):
        if section is not None and not section.tagged:
            run.append(section)
            continue
        end = text.find(section.opening, start) if section is not None else len(text)
        if run and end >= 0:
            yield run, text[start:end]
        run = []
        if section is not None:
            closed = text.find(section.closing, start)
            start = closed + len(section.closing) if closed >= 0 else start


def _read_untagged(run: list[Section], text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, body) of sections without tags.

    The body of an image is the next `IMAGE`, and the body of a text is what stands before that.
    """
    for section in run:
        before, image, after = text.partition(IMAGE)
        if not section.is_image:
            yield section.name, before.strip()
            text = image + after
        elif image and not before.strip():
            yield section.name, IMAGE
            text = after


def _is_well_formed(text: str, spec: ChainSpec) -> bool:
    tags, whole = _patterns(spec)
    expected = [tag for section in spec.sections if section.tagged
                for tag in (section.opening, section.closing)]
    if tags is not None and [match[0] for match in tags.finditer(text)] != expected:
        return False
    match = whole.fullmatch(text)
    return match is not None and all(
        match[section.name].strip() == IMAGE if section.is_image else IMAGE not in match[section.name]
        for section in spec.sections)


def has_tags_in_order(text: str, spec: ChainSpec | None = None) -> bool:
    """Whether the tags of `spec` (the published chain by default) stand in order, whatever is inside.

    Between a section and the next only white space may stand, and nothing around all of them. Never
    raises, whatever the text. A section may hold anything: text in place of its image, and tags of
    other sections.
    """
    sections = (spec or ChainSpec.published()).sections
    first, last = sections[0].opening, sections[-1].closing
    if not isinstance(text, str) or not text.startswith(first) or not text.endswith(last):
        return False
    # The first place of each border is as good as a later one. One pattern of the whole chain would
    # try all places of all borders, which takes for ever on a text that repeats itself.
    position = len(first)
    for one, other in zip(sections, sections[1:], strict=False):
        border = re.compile(rf"{re.escape(one.closing)}\s*{re.escape(other.opening)}").search(text, position)
        if border is None:
            return False
        position = border.end()
    return position <= len(text) - len(last)


@lru_cache(maxsize=16)
def _patterns(spec: ChainSpec) -> tuple[re.Pattern[str] | None, re.Pattern[str]]:
    """Return a pattern of any tag of the spec, and one of a whole chain with its bodies as groups.

    The first is None where the spec has no tags.
    """
    names = "|".join(section.name for section in spec.sections if section.tagged)
    whole, follows_text = "", False
    for section in spec.sections:
        is_bare_text = not (section.tagged or section.is_image)  # white space around it is its own
        body = re.escape(IMAGE) if section.is_image and not section.tagged else ".*?"
        whole += "" if is_bare_text or follows_text else r"\s*"
        whole += f"{re.escape(section.opening)}(?P<{section.name}>{body}){re.escape(section.closing)}"
        follows_text = is_bare_text
    whole = re.compile(whole + ("" if follows_text else r"\s*"), re.DOTALL)
    return re.compile(f"</?(?:{names})>") if names else None, whole


def markup_in(text: str, spec: ChainSpec | None = None) -> str | None:
    """Return the first tag or `IMAGE` in `text`, or None.

    The body of a text section must have none.
    """
    tags, _ = _patterns(spec or ChainSpec.published())
    found = [match for match in (tags and tags.search(text), re.search(re.escape(IMAGE), text)) if match]
    return min(found, key=lambda match: match.start())[0] if found else None


def render_chain(sections: Mapping[str, str], spec: ChainSpec | None = None) -> str:
    """Write a chain from the bodies of its text sections; image sections get `IMAGE`.

    Raises `KeyError` on a missing text.
    """
    return "".join(piece for piece, _ in chain_pieces(sections, spec))


def chain_pieces(sections: Mapping[str, str], spec: ChainSpec
                 | None = None) -> list[tuple[str, Section | None]]:
    """Return the chain as the pieces that are tokenised separately.

    A piece is (tag, None) or (body, its section); the body of an image is `IMAGE`. `sections`: name
    -> body of the text sections.
    """
    pieces: list[tuple[str, Section | None]] = []
    for section in (spec or ChainSpec.published()).sections:
        body = IMAGE if section.is_image else sections[section.name]
        pieces += [(section.opening, None), (body, section),
                   (section.closing, None)] if section.tagged else [(body, section)]
    return pieces
