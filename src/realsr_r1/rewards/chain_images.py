"""Which images of a completion count for the rewards that judge images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import parse_chain


def chain_images(text: str, images: Sequence[Image.Image] | None,
                 spec: ChainSpec) -> list[Image.Image] | None:
    """Return a completion's images, one for each image section of `spec`, the final one last.

    None for a chain that is not well formed or has fewer images than it should.
    """
    count, shown = len(spec.images), _shown(images)
    if len(shown) < count or not parse_chain(text, spec).is_well_formed:
        return None
    return shown[-count:]


def last_image(images: Sequence[Image.Image] | None) -> list[Image.Image] | None:
    """Return the last image of any completion, as a list of one, or None where it has none."""
    return _shown(images)[-1:] or None


def _shown(images: Sequence[Image.Image] | None) -> list[Image.Image]:
    given = images if isinstance(images, Sequence) else ()
    return [image for image in given if isinstance(image, Image.Image) and min(image.size) > 0]


def per_completion(values: Sequence | None, count: int) -> Sequence:
    """A column of `count` completions; all None where the column is missing."""
    return [None] * count if values is None else values


def references(values: Sequence[Any] | None, count: int) -> list[Image.Image | None]:
    """A column of images of `count` records; None where a record has something else."""
    return [value if isinstance(value, Image.Image) else None for value in per_completion(values, count)]
