"""The progress reward: is each image of a chain better than the one before it?"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import scale_to
from realsr_r1.rewards.experts import score_images
from realsr_r1.rewards.generation import EXPERT_OPTIONS, GenerationReward, expert_columns
from realsr_r1.rewards.reward import Reward


class ProgressReward(GenerationReward):
    """A reward function: the share of a chain's steps at which an expert's score rises (0..1).

    It is the mean over the experts, with their weights, and 0, 1/2 or 1 for one expert and the
    published chain's two steps. All images are scored at the size of the largest, usually the final
    one: smaller ones are enlarged bicubically, so that an image counts for what it shows and not
    for its size. An equal score is no progress. Experts, arguments and what is missing are as in
    `GenerationReward`.

    A bad first image makes progress easy, so this is a reward to put beside `generation`, never
    alone. Raises `UserError` for a chain with one image.
    """

    __name__ = "progress_reward"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if len(self.spec.images) < 2:
            raise UserError("the progress reward compares each image with the one before, and this model's "
                            "chain has one image; leave it out of --reward_funcs")

    def _scores(self, expert: Any, chains: list[list[Image.Image]], hq: list[Any]) -> list[float]:
        steps = len(self.spec.images)
        sizes = [max((image.size for image in chain), key=math.prod) for chain in chains]
        images = [scale_to(image, size) for chain, size in zip(chains, sizes, strict=True) for image in chain]
        found = score_images(expert, images, [reference for reference in hq for _ in range(steps)])
        rows = [found[start:start + steps] for start in range(0, len(found), steps)]
        return [sum(after > before for before, after in zip(row, row[1:])) / (steps - 1) for row in rows]


PROGRESS = Reward("progress", "restoration", expert_columns,
                  lambda settings: ProgressReward(settings.experts, settings.place, settings.chain,
                                                  settings.expert_weights),
                  EXPERT_OPTIONS, lambda settings: settings.experts)
