"""Gives a restored photo the colours of its input, and a share of it, on the whole picture.

`wavelet` replaces its low frequencies (StableSR, arXiv 2305.07015), `adain` gives each channel the
input's mean and spread, `none` leaves it as it is. Knows pictures only.
"""

from __future__ import annotations

import math

import numpy
from PIL import Image

from realsr_r1.core.images import COLOR_FIX_LEVELS, with_colors_of

LEVELS = numpy.arange(256.0)


def wavelet_levels(target_px: int) -> int:
    """Return how many levels of low frequencies come from the input, for images of `target_px`.

    StableSR's five are for 512 px: details wider than a sixteenth of an image are the input's. The
    same share of a smaller image has fewer levels (48 px: 2).
    """
    return min(COLOR_FIX_LEVELS, max(1, round(math.log2(max(1.0, target_px / 16)))))


def fix_colors(image: Image.Image, reference: Image.Image, method: str,
               levels: int = COLOR_FIX_LEVELS) -> Image.Image:
    """Return `image` with the colours of `reference`, a picture in RGB of the same size.

    `method`: one of `COLOR_FIXES` of `realsr_r1.chain.spec`. `levels`: see
    `wavelet_levels`. After `wavelet` and
    `adain` each channel's mean is that of `reference` up to rounding. The two clip values at 0 and
    255, which can shift a mean, so the rest of the way is a shift of the whole channel.
    """
    if method == "none":
        return image
    if method == "wavelet":
        image, tables = with_colors_of(reference, image, levels), [LEVELS] * 3
    else:
        tables = [_matched(*pair) for pair in zip(_statistics(image), _statistics(reference), strict=True)]
    counts, wanted = numpy.array(image.histogram()).reshape(3, 256), _statistics(reference)
    return image.point([round(value) for table, count, (mean, _) in zip(tables, counts, wanted, strict=True)
                        for value in _shifted(table, count, mean)])


def with_share_of(reference: Image.Image, image: Image.Image, share: float) -> Image.Image:
    """Return `image` with this share of `reference`, from 0 to 1, in each pixel.

    What the model invented and what the input is damaged by are different errors, so a mix is often
    nearer to the original than either (measured: docs/results.md).
    """
    return Image.blend(image, reference, share) if share else image


def _statistics(image: Image.Image) -> list[tuple[float, float]]:
    """Return mean and standard deviation of each channel."""
    found = []
    for count in numpy.array(image.histogram(), dtype=float).reshape(3, 256):
        mean = (count @ LEVELS) / count.sum()
        found.append((mean, (count @ (LEVELS - mean) ** 2 / count.sum()) ** 0.5))
    return found


def _matched(own: tuple[float, float], wanted: tuple[float, float]) -> numpy.ndarray:
    """Return the table that gives a channel another mean and standard deviation, (256,)."""
    return (LEVELS - own[0]) * (wanted[1] / max(own[1], 1e-6)) + wanted[0]


def _shifted(table: numpy.ndarray, count: numpy.ndarray, mean: float) -> numpy.ndarray:
    """Return `table`, clipped and shifted so that a channel with this histogram gets this mean.

    A mean that is right to within half a level stays. Otherwise the shift is found by bisection,
    because the mean after clipping grows with it.
    """
    def shifted(by: float) -> numpy.ndarray:
        return (table + by).clip(0, 255).round()

    low, high = (0.0, 0.0) if abs(count @ shifted(0) / count.sum() - mean) <= 0.5 else (-255.0, 255.0)
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if count @ shifted(middle) / count.sum() < mean else (low, middle)
    return shifted(high)
