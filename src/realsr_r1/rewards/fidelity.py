"""The fidelity reward: does the final image agree with the input, and with the HQ image?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.images import resize_to_cover, to_rgb
from realsr_r1.rewards.chain_images import chain_images, per_completion, references
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rewards.reward import Reward

# The comparison with the input is that of super-resolution's benchmarks: the result is brought down
# to where the input holds information, and its PSNR to the input counts there (NTIRE 2021's
# challenge on learning the super-resolution space, "LR PSNR"). Our inputs are blurred, noisy and
# compressed, too, so that place is a quarter of the sides, which averages noise over 16 pixels. The
# score ends at 25 dB, about where the truth itself ends (Morozov's discrepancy principle: fit data
# no closer than their noise), so a copy of the input gains little over a restoration. Measured with
# Real-ESRGAN's degradation, medians of 24 to 48 crops: the original has 25.0 dB (48 px) and 27.8 dB
# (256 px) at scale 1, 20.7 and 23.6 dB at scale 4; another photo has 9.3 to 10.5 dB.
SHARE = 4
WORST_DB, BEST_DB = 10.0, 25.0
SMALLEST_ERROR = 1e-8  # so that the PSNR of equal images is finite
HQ_EXPERTS = ("psnr",)


class FidelityReward:
    """A reward function: how well the final image agrees with the input and with the HQ image (0..1).

    The mean of two parts: `consistency` with the input, and where there is an HQ image, pyiqa's
    PSNR to it, whose range is 0 to 40 dB. `spec`: the chain, by default the published one.
    `target_px`: the side of its final images, where they are square.

    Call the object with TRL's signature. `images`: the images of each completion. `lq`, `hq`: the
    input and the HQ image of each record, or None. A chain that is not well formed or has fewer
    images than it should scores 0.0. A record with neither gets None.
    """

    __name__ = "fidelity_reward"

    def __init__(self, spec: ChainSpec | None = None, target_px: int = 512):
        self.spec = spec or ChainSpec.published()
        self.target_px = target_px
        (self._psnr,) = create_experts(HQ_EXPERTS)

    def __call__(self, completions: Sequence[str],
                 images: Sequence[Sequence[Image.Image] | None] | None = None,
                 lq: Sequence[Image.Image | None] | None = None,
                 hq: Sequence[Image.Image | None] | None = None, **columns: Any) -> list[float | None]:
        count = len(completions)
        rows = zip(completions, per_completion(images, count), references(lq, count), references(hq, count),
                   strict=True)
        return [self._score(*row) for row in rows]

    def _score(self, text: str, images: Sequence[Image.Image] | None, lq: Image.Image | None,
               hq: Image.Image | None) -> float | None:
        if lq is None and hq is None:
            return None
        chain = chain_images(text, images, self.spec)
        if chain is None:
            return 0.0
        parts = [] if lq is None else [consistency(chain[-1], lq, self.target_px)]
        parts += [] if hq is None else score_images(self._psnr, [chain[-1]], [hq])
        return sum(parts) / len(parts)


def consistency(image: Image.Image, lq: Image.Image, target_px: int) -> float:
    """How well `image` agrees with the input `lq` where both are small, from 0 to 1.

    Both are brought to a quarter of `target_px`, the chain's size of a final image, in the shape of
    the input: the size doesn't depend on the image, so drawing a small one is no way to agree
    better. The score rises with their PSNR in RGB from 10 dB (0) to 25 dB (1). An image of another
    shape is cropped in the middle.
    """
    import numpy

    scale = target_px / SHARE / math.sqrt(lq.width * lq.height)
    size = max(1, round(lq.width * scale)), max(1, round(lq.height * scale))
    shown, wanted = (numpy.asarray(resize_to_cover(to_rgb(one), size), dtype=float) / 255
                     for one in (image, lq))
    decibels = -10 * math.log10(max(float(((shown - wanted) ** 2).mean()), SMALLEST_ERROR))
    return min(max((decibels - WORST_DB) / (BEST_DB - WORST_DB), 0.0), 1.0)


FIDELITY = Reward("fidelity", "restoration", lambda settings: (),
                  lambda settings: FidelityReward(settings.chain, settings.target_px), (),
                  lambda settings: HQ_EXPERTS)
