"""A chain survives writing and reading; whatever departs from its form is seen; reading never
raises.
"""

from __future__ import annotations

import pytest

from realsr_r1.chain.spec import IMAGE, ChainSpec
from realsr_r1.chain.text import (
    SECTIONS,
    chain_pieces,
    parse_chain,
    render_chain,
)

IMAGE_SECTIONS = tuple(section.name for section in ChainSpec.published().images)
TEXT_SECTIONS = tuple(section.name for section in ChainSpec.published().sections if not section.is_image)
TEXTS = {
    "degradation": "light blur, downsample, medium noise, light compression, upsample",
    "rough_understand": "a cat lying on a cloth",
    "middle_understand": "a ginger cat with green eyes, close up",
    "final_understand": "fine fur, sharp whiskers; 3 < 4 & the rest",
}
WHOLE = render_chain(TEXTS)


def body(name: str) -> str:
    return IMAGE if name in IMAGE_SECTIONS else TEXTS[name]


def section(name: str, content: str | None = None) -> str:
    return f"<{name}>{body(name) if content is None else content}</{name}>"


def chain_with(**replaced: str) -> str:
    """The whole chain, with the sections named replaced by the given text, tags included."""
    return "".join(replaced.get(name, section(name)) for name in SECTIONS)


def swapped(first: int, second: int) -> str:
    order = list(SECTIONS)
    order[first], order[second] = order[second], order[first]
    return "".join(map(section, order))


def test_a_chain_survives_writing_and_reading():
    chain = parse_chain(WHOLE)
    assert chain.is_well_formed
    assert chain.sections == {name: body(name) for name in SECTIONS}
    assert render_chain(chain.sections) == WHOLE


def test_white_space_around_sections_and_bodies_is_free():
    chain = parse_chain("\n\n" + "\n \t".join(section(name, f"\n {body(name)} \n") for name in SECTIONS)
                        + "  \n")
    assert chain.is_well_formed
    assert chain.sections == {name: body(name) for name in SECTIONS}


def test_pieces_join_to_the_chain_and_say_which_images_they_are():
    pieces = chain_pieces(TEXTS)
    assert "".join(text for text, _ in pieces) == WHOLE
    assert [section.name for _, section in pieces if section] == list(SECTIONS)
    assert all((text == IMAGE) == section.is_image for text, section in pieces if section)


@pytest.mark.parametrize("name", TEXT_SECTIONS)
def test_writing_a_chain_without_a_text_names_the_text(name):
    with pytest.raises(KeyError, match=name):
        render_chain({key: text for key, text in TEXTS.items() if key != name})


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_section_is_seen(name):
    chain = parse_chain(chain_with(**{name: ""}))
    assert not chain.is_well_formed
    assert set(chain.sections) == set(SECTIONS) - {name}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_repeated_section_is_seen_and_the_first_one_read(name):
    chain = parse_chain(chain_with(**{name: section(name) + section(name, "again")}))
    assert not chain.is_well_formed
    assert chain.sections[name] == body(name)


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("tag", ["<{}>", "</{}>"])
def test_an_unopened_or_unclosed_section_is_seen(name, tag):
    assert not parse_chain(WHOLE.replace(tag.format(name), "")).is_well_formed


@pytest.mark.parametrize("first", range(len(SECTIONS) - 1))
def test_swapped_sections_are_seen(first):
    assert not parse_chain(swapped(first, first + 1)).is_well_formed


@pytest.mark.parametrize("name", IMAGE_SECTIONS)
@pytest.mark.parametrize("content", ["", "  ", IMAGE * 2, f"{IMAGE} {IMAGE}", f"{IMAGE} a cat", "a cat",
                                     "<image>"])
def test_an_image_section_holds_exactly_one_image(name, content):
    assert not parse_chain(chain_with(**{name: section(name, content)})).is_well_formed


@pytest.mark.parametrize("name", TEXT_SECTIONS)
@pytest.mark.parametrize("content", [IMAGE, f"a cat {IMAGE}", "<final_image>", "</degradation>"])
def test_a_text_section_holds_no_image_and_no_section_tag(name, content):
    assert not parse_chain(chain_with(**{name: section(name, content)})).is_well_formed


@pytest.mark.parametrize("text", [
    "Sure! " + WHOLE,
    WHOLE + " done",
    WHOLE + IMAGE,
    WHOLE.replace("</degradation>", "</degradation> and so "),
    WHOLE + WHOLE,
    f"<think>{WHOLE}</think>",
])
def test_anything_outside_the_sections_is_seen(text):
    assert not parse_chain(text).is_well_formed


def test_a_section_inside_another_is_seen():
    nested = chain_with(rough_understand=section("rough_understand", section("rough_image")), rough_image="")
    assert not parse_chain(nested).is_well_formed


@pytest.mark.parametrize("text", [
    "", " ", "\n", "\x00", "<", ">", "</", "<>", "</>", IMAGE, IMAGE * 100, "<degradation>", "</degradation>",
    "</degradation><degradation>", "<degradation" * 50, "<degradation>" * 200, "</final_image>" * 200,
    "<final_image><rough_image></final_image></rough_image>", WHOLE[:-1], WHOLE[1:], WHOLE[::-1],
    WHOLE.upper(),
    WHOLE.replace("<", "< "), "\ud800", "雪" * 1000, "(" * 1000, "\\1\\g<0>", "%s{}{0}",
    "<degradation>" + "a" * 100_000, None, 3, b"bytes", ["<degradation>"],
], ids=lambda text: repr(text)[:24])
def test_reading_never_raises(text):
    chain = parse_chain(text)
    assert chain.is_well_formed is False
    assert set(chain.sections) <= set(SECTIONS)


def test_a_long_broken_chain_is_read_at_once():
    text = "".join(f"<{name}>" + " a" * 20_000 for name in SECTIONS)
    assert not parse_chain(text).is_well_formed
