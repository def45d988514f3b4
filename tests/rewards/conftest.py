"""Chains and small real photos for the tests of the rewards."""

from __future__ import annotations

import pytest
import skimage.data
from PIL import Image

from realsr_r1.chain.text import IMAGE, render_chain

TEXTS = {"degradation": "medium blur, downsample, heavy noise, light compression, upsample",
         "rough_understand": "A cat on a wooden table near a window.",
         "middle_understand": "A ginger cat with green eyes.",
         "final_understand": "A ginger cat looks to the left, each whisker sharp."}


@pytest.fixture
def chain():
    """A function that writes a well-formed chain, with other bodies: chain(degradation="...")."""
    return lambda **texts: render_chain({**TEXTS, **texts})


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Four photos at 48x48 px."""
    squares = []
    for photo in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(),
                  skimage.data.rocket()):
        image = Image.fromarray(photo).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        squares.append(image.crop((left, top, left + side, top + side)).resize((48, 48),
                                                                               Image.Resampling.BICUBIC))
    return squares


@pytest.fixture
def odd_completions(chain) -> list:
    """Completions that are no chain: empty, not text, broken, swapped, repeated, unclosed, very
    long.
    """
    good = chain()
    degradation, rest = good.split("</degradation>")
    return ["", " \n", None, 7, [], IMAGE * 3, "<degradation>", "</final_image>" + good, good + "!", good * 2,
            good[:-1], good[:len(good) // 2], degradation + rest, rest + degradation + "</degradation>",
            good.replace("middle_image", "rough_image"), good.replace(IMAGE, "", 1),
            good.replace(IMAGE, IMAGE * 2, 1),
            chain(rough_understand=IMAGE), chain(final_understand="<degradation>"), "<degradation>" * 5000,
            "a," * 20000, "\x00\ud800" + "(" * 3000]
