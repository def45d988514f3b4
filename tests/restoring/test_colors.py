"""Whatever the policy did to the colours, each channel's mean follows the input."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image, ImageFilter

from realsr_r1.restoring.colors import fix_colors

from ..small import photo


def means(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image, dtype=float).mean((0, 1))


def casts(image: Image.Image) -> dict[str, Image.Image]:
    """`image` as a bad policy might give it back."""
    values = numpy.asarray(image, dtype=float)
    noise = numpy.random.default_rng(0).normal(0, 80, values.shape)
    changed = {"tinted": values * (0.6, 1.0, 1.3), "dark": values * 0.2, "washed out": values * 0.2 + 180,
               "noisy": values + noise, "black": values * 0}
    return {name: Image.fromarray(value.clip(0, 255).astype(numpy.uint8)) for name, value in changed.items()}


@pytest.mark.parametrize("method", ["wavelet", "adain"])
@pytest.mark.parametrize("brightness", [0.15, 1.0, 2.5])  # where clipping at 0 and 255 counts
def test_the_means_follow_the_input(method, brightness):
    reference = photo("astronaut", 120).point(lambda value: min(255, round(value * brightness)))
    for name, image in casts(reference.filter(ImageFilter.GaussianBlur(2))).items():
        fixed = fix_colors(image, reference, method)
        assert fixed.size == image.size and fixed.mode == "RGB"
        assert abs(means(fixed) - means(reference)).max() <= 1, name


def test_adain_gives_the_channels_their_spread():
    reference = photo("astronaut", 120)
    fixed = fix_colors(casts(reference)["washed out"], reference, "adain")
    spread = [numpy.asarray(image, dtype=float).std((0, 1)) for image in (fixed, reference)]
    assert abs(spread[0] - spread[1]).max() <= 4


def test_none_leaves_the_picture_as_it_is():
    image = photo("coffee", 40)
    assert fix_colors(image, photo("astronaut", 40), "none") is image
