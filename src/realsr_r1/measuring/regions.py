"""Finds the region that a restored picture and its original both show, so that they are compared there.

A restored picture of the original's shape shows all of it. One of another shape was cut, or squeezed:
it is tried which of the ways that programs have explains it. Knows pictures and sizes; no metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image as Images
from PIL.Image import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import cover_offset, resize_to_cover, scale_to_cover

if TYPE_CHECKING:
    import numpy

BICUBIC = Images.Resampling.BICUBIC
Size = tuple[int, int]  # width, height in px
THUMBNAIL = 96  # px of the longer side at which ways are compared: far below the details that differ
# Two pictures show the same if their thumbnails correlate so well, or differ by so little (of 255).
# Photos of other scenes correlate by about 0 to 0.5.
LEAST_CORRELATION, MOST_DIFFERENCE = 0.8, 8.0
# Ways whose thumbnails are as near to each other as this can't be told apart (root mean square).
UNCERTAIN = 0.25
MOST_PLACES = 4_000_000  # px of an original in which an unscaled cut is looked for


@dataclass(frozen=True)
class Way:
    """How a picture of one size was made from one of another.

    `name`: in words, for the note. `size`: at which both are compared. `original`, `restored`: bring
    each of them to that size and region. `is_whole`: both show the whole photo.
    """

    name: str
    size: Size
    original: Callable[[Image], Image]
    restored: Callable[[Image], Image]
    is_whole: bool = False


def same_shape(one: Size, other: Size) -> bool:
    """Whether one size is the other scaled, up to the rounding of a side to whole px."""
    (width, height), (wanted, tall) = sorted((one, other))
    return abs(width * tall - height * wanted) <= max(wanted, tall)


def find_way(restored: Image, original: Image, name: str) -> Way:
    """Return how `restored` was made from what `original` shows.

    Raises `UserError` that names the picture by `name` when it shows something else, or when no way
    explains its shape.
    """
    if same_shape(restored.size, original.size):
        return Way("whole", original.size, _same, lambda image: image.resize(original.size, BICUBIC), True)
    ways = _ways(restored, original)
    scored = [(_difference(way.restored(restored), way.original(original)), number)
              for number, way in enumerate(ways)]
    (difference, correlation), _ = min(scored)
    if correlation < LEAST_CORRELATION and difference > MOST_DIFFERENCE:
        raise UserError(f"{name} is {_px(restored.size)} and its original {_px(original.size)}: it is no "
                        "part of the original that can be found; restore the whole photo, or leave it out "
                        "with --skip_bad")
    return ways[min(number for (found, _), number in scored if found <= difference + UNCERTAIN)]


def _ways(restored: Image, original: Image) -> list[Way]:
    """The ways that programs have, the likeliest first."""
    ways = [_cut_at(restored.size, 0.5, "its middle, as fit: crop cuts it"),
            Way("squeezed to another shape, as fit: stretch makes it", original.size, _same,
                lambda image: image.resize(original.size, BICUBIC)),
            _cut_at(restored.size, 0.0, "its left or top part"),
            _cut_at(restored.size, 1.0, "its right or bottom part"), _more_than(original.size)]
    place = _unscaled_place(restored, original)
    if place is not None:
        left, top = place
        box = (left, top, left + restored.width, top + restored.height)
        ways.append(Way(f"a part of it, from {left}, {top} on", restored.size, lambda image: image.crop(box),
                        _same))
    return ways


def _cut_at(size: Size, share: float, name: str) -> Way:
    """The original was scaled to cover `size`, and cut; `share` of what was cut off lies before."""
    def cut(image: Image) -> Image:
        image = scale_to_cover(image, size)
        left, top = (round(2 * share * offset) for offset in cover_offset(image.size, size))
        return image.crop((left, top, left + size[0], top + size[1]))

    return Way(name, size, cut, _same)


def _more_than(size: Size) -> Way:
    """The original was cut from the middle of what the restored picture shows."""
    return Way("more than it, which is its middle", size, _same, lambda image: resize_to_cover(image, size))


def _unscaled_place(restored: Image, original: Image) -> tuple[int, int] | None:
    """Where `restored` lies in `original` if it is a part of it at the same scale; None if larger."""
    if restored.width > original.width or restored.height > original.height \
            or original.width * original.height > MOST_PLACES:
        return None
    import cv2
    import numpy

    found = cv2.matchTemplate(*(numpy.asarray(image.convert("L")) for image in (original, restored)),
                              cv2.TM_SQDIFF)
    return cv2.minMaxLoc(found)[2]


def _difference(one: Image, other: Image) -> tuple[float, float]:
    """(root mean square difference of 255, correlation) of two pictures' thumbnails."""
    import numpy

    values, others = (_thumbnail(image) for image in (one, other))
    apart, varies = values - values.mean(), others - others.mean()
    spread = numpy.sqrt((apart**2).sum() * (varies**2).sum())
    return (float(numpy.sqrt(((values - others) ** 2).mean())),
            float((apart * varies).sum() / spread) if spread else 0.0)


def _thumbnail(image: Image) -> numpy.ndarray:
    import numpy

    share = min(1.0, THUMBNAIL / max(image.size))
    small = image.convert("L").resize([max(1, round(side * share)) for side in image.size],
                                      Images.Resampling.BOX)
    return numpy.asarray(small, dtype=numpy.float64)


def _same(image: Image) -> Image:
    return image


def _px(size: Size) -> str:
    return f"{size[0]}x{size[1]} px"
