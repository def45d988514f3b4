"""The format reward: 1 for the seven sections in order with an image each in the image sections,
else 0.
"""

from __future__ import annotations

import pytest

from realsr_r1.chain.text import IMAGE, SECTIONS
from realsr_r1.rewards import format_reward


def section(text: str, name: str) -> str:
    return text[text.index(f"<{name}>"):text.index(f"</{name}>") + len(f"</{name}>")]


def test_a_whole_chain_scores_one(chain):
    spaced = chain().replace("><", ">\n <")
    assert format_reward([chain(), f"\n{spaced}  "]) == [1.0, 1.0]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_repeated_or_unclosed_section_scores_zero(chain, name):
    good = chain()
    part = section(good, name)
    assert format_reward([good.replace(part, ""), good.replace(part, part * 2),
                          good.replace(f"</{name}>", ""),
                          good.replace(f"<{name}>", "")]) == [0.0] * 4


@pytest.mark.parametrize("first, second", list(zip(SECTIONS, SECTIONS[1:])))
def test_swapped_sections_score_zero(chain, first, second):
    good = chain()
    one, two = section(good, first), section(good, second)
    assert format_reward([good.replace(one + two, two + one)]) == [0.0]


@pytest.mark.parametrize("name", ["rough_image", "middle_image", "final_image"])
def test_an_image_section_without_its_image_scores_zero(chain, name):
    filled = f"<{name}>{IMAGE}</{name}>"
    assert format_reward([chain().replace(filled, f"<{name}>{body}</{name}>")
                          for body in ("", "a photo", IMAGE * 2, f"a {IMAGE}")]) == [0.0] * 4


def test_text_outside_the_sections_scores_zero(chain):
    assert format_reward(["Sure: " + chain(), chain() + "."]) == [0.0, 0.0]


def test_three_images_are_asked_for_where_images_are_given(chain, photos):
    images = [photos[:3], photos[:2], photos, [], None]
    assert format_reward([chain()] * 5, images=images) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_odd_completions_score_zero_and_never_raise(odd_completions):
    assert format_reward(odd_completions, source=[""] * len(odd_completions)) == [0.0] * len(odd_completions)
