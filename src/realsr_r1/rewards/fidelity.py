"""The fidelity reward: does the final image agree with the input, and with the HQ image?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.images import resize_to_cover, to_rgb
from realsr_r1.rewards.chain_images import chain_images, per_completion
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rewards.reward import Reward

# The comparison with the input is that of super-resolution's benchmarks: the result is brought down
# to where the input holds information, and the PSNR to the input counts there (NTIRE 2021's
# challenge on learning the SR space, "LR PSNR"). Our inputs are blurred, noisy and compressed, too,
# so that place is a quarter of the sides, which averages noise over 16 pixels. The reward ends
# where the truth itself ends (Morozov's discrepancy principle: don't fit data closer than their
# noise), or a copy of the input would win by its noise. Measured with Real-ESRGAN's degradation,
# PSNR in RGB at a quarter of the sides, medians of 24 to 48 crops: the original 25.3 dB (48 px) and
# 28.4 dB (256 px) at scale 1, 20.6 and 23.7 dB at scale 4; another photo 9.2 to 10.4 dB.
SHARE = 4
WORST_DB, BEST_DB = 10.0, 25.0
SMALLEST_ERROR = 1e-8  # so that the PSNR of equal images is finite
HQ_EXPERTS = ("psnr",)
LARGEST_SIDE = 128  # px that are compared at most: a quarter of the published 512 px


class FidelityReward:
    """A reward function: how well the final image agrees with the input and with the HQ image (0..1).

    The mean of two parts: `consistency` with the input, and where there is an HQ image, pyiqa's
    PSNR to it, whose range is 0 to 40 dB. `spec`: the chain, by default the published one.

    Call the object with TRL's signature. `images`: the images of each completion. `lq`, `hq`: the
    input and the HQ image of each record, or None. A chain that is not well formed or has fewer
    images than it should scores 0.0. A record with neither gets None.
    """

    __name__ = "fidelity_reward"

    def __init__(self, spec: ChainSpec | None = None):
        self.spec = spec or ChainSpec.published()
        (self._psnr,) = create_experts(HQ_EXPERTS)

    def __call__(self, completions: Sequence[str],
                 images: Sequence[Sequence[Image.Image] | None] | None = None,
                 lq: Sequence[Image.Image | None] | None = None,
                 hq: Sequence[Image.Image | None] | None = None, **columns: Any) -> list[float | None]:
        count = len(completions)
        rows = zip(completions, *(per_completion(column, count) for column in (images, lq, hq)), strict=True)
        return [self._score(*row) for row in rows]

    def _score(self, text: str, images: Sequence[Image.Image] | None, lq: Image.Image | None,
               hq: Image.Image | None) -> float | None:
        if lq is None and hq is None:
            return None
        chain = chain_images(text, images, self.spec)
        if chain is None:
            return 0.0
        parts = [] if lq is None else [consistency(chain[-1], lq)]
        parts += [] if hq is None else score_images(self._psnr, [chain[-1]], [hq])
        return sum(parts) / len(parts)


def consistency(image: Image.Image, lq: Image.Image) -> float:
    """How well `image` agrees with the input `lq` where both are small, from 0 to 1.

    Both are shrunk to a quarter of the sides (of the one with more pixels, so drawing small images
    is no way to agree better), at most 128 px. The score rises with their PSNR in RGB from 10 dB
    (0) to 25 dB (1). An input of another shape is cropped in the middle, as prompts are.
    """
    import numpy

    image, lq = to_rgb(image), to_rgb(lq)
    scale = max(1.0, math.sqrt(lq.width * lq.height / (image.width * image.height)))
    scale = min(scale / SHARE, LARGEST_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shown, wanted = (numpy.asarray(resize_to_cover(one, size), dtype=float) / 255 for one in (image, lq))
    decibels = -10 * math.log10(max(float(((shown - wanted) ** 2).mean()), SMALLEST_ERROR))
    return min(max((decibels - WORST_DB) / (BEST_DB - WORST_DB), 0.0), 1.0)


FIDELITY = Reward("fidelity", "restoration", lambda settings: (),
                  lambda settings: FidelityReward(settings.chain), (), lambda settings: HQ_EXPERTS)
