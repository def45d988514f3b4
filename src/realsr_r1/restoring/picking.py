"""Chooses the best of several samples of an image.

A judge is `agreement`, or an expert of `realsr_r1.rewards.experts` that needs no original. Knows
pictures and scores; not how samples are made. A tiled photo is judged tile by tile: the best of N
tiles each is the best of N^tiles photos, for the forward passes of N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import scale_to

if TYPE_CHECKING:
    from PIL.Image import Image

AGREEMENT = "agreement"
AGREEMENT_SHARE = 4  # pictures are compared at this part of their size, where the input can be trusted

# Scores from 0 to 1 of images that were restored from the second argument.
Judge = Callable[[Sequence["Image"], "Image"], list[float]]


def make_judge(name: str, device: str) -> Judge:
    """Return the judge of this name.

    Raises `UserError` for an unknown expert, one that can't be loaded, and one that needs the
    original, which nobody has when a photo is restored.
    """
    if name == AGREEMENT:
        return agreement
    from realsr_r1.rewards.experts import create_experts, expert_needs_hq, score_images

    if expert_needs_hq(name):
        raise UserError(f"--pick {name} compares with the original photo, which restore doesn't have; take "
                        f"{AGREEMENT} or an expert without a reference (piqe, musiq ...)")
    [expert] = create_experts([name], device)
    return lambda images, lq: score_images(expert, images)


def agreement(images: Sequence[Image], lq: Image) -> list[float]:
    """Score how well images agree with the input `lq` once both are small, from 0 to 1.

    It is 1 - the root of the mean squared difference, in RGB from 0 to 1, at a quarter of the size.
    """
    import numpy

    size = tuple(max(1, side // AGREEMENT_SHARE) for side in lq.size)
    wanted, *found = (numpy.asarray(scale_to(image, size), dtype=float) / 255 for image in (lq, *images))
    return [1 - float(((image - wanted) ** 2).mean() ** 0.5) for image in found]


def best_of(scores: Sequence[float], count: int = 1) -> list[int]:
    """Return the numbers of the `count` highest scores, the best first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:count]
