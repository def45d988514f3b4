"""The format reward: is the completion one whole chain? What a chain is, `realsr_r1.chain.text` knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.text import IMAGE_SECTIONS, parse_chain

if TYPE_CHECKING:
    from PIL import Image


def format_reward(completions: Sequence[str], images: Sequence[Sequence[Image.Image] | None] | None = None,
                  **columns: Any) -> list[float]:
    """1.0 for a well-formed chain, else 0.0.

    `images`: the images of each completion; where they are given, there must be exactly three,
    since text alone can't tell a decoded image from its name.
    """
    well_formed = [parse_chain(text).is_well_formed for text in completions]
    if images is not None:
        well_formed = [good and len(own or ()) == len(IMAGE_SECTIONS)
                       for good, own in zip(well_formed, images, strict=True)]
    return [float(good) for good in well_formed]
