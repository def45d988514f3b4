"""The generation reward: what visual experts (experts.py) think of a completion's final image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.text import IMAGE_SECTIONS, parse_chain
from realsr_r1.rewards.experts import DEFAULT_EXPERTS, create_experts, score_images

if TYPE_CHECKING:
    from PIL import Image


class GenerationReward:
    """Mean of the experts' scores (0..1) of the last image of each completion; a reward function with its experts.

    `experts`: names, see experts.py; they are made here, on `device`. Raises `UserError` for an unknown expert and for
    one that can't be loaded. Call it with TRL's signature:

    `images`: the images of each completion. `hq`: the HQ image of each record or None; where it is missing, the experts
    that need it are left out of that mean. A chain that is not well formed, or has fewer than three images, scores 0.0;
    a record that no expert can judge (all need the missing HQ image) gets None.
    """

    __name__ = "generation_reward"  # TRL logs a reward under its __name__

    def __init__(self, experts: Sequence[str] = DEFAULT_EXPERTS, device: str = "cpu"):
        self.experts = create_experts(experts, device)

    def __call__(self, completions: Sequence[str], images: Sequence[Sequence[Image.Image] | None] | None = None,
                 hq: Sequence[Image.Image | None] | None = None, **columns: Any) -> list[float | None]:
        own_images = [None] * len(completions) if images is None else images
        references = [None] * len(completions) if hq is None else hq
        finals = [_final_image(text, own) for text, own in zip(completions, own_images, strict=True)]
        scores: list[list[float]] = [[] for _ in completions]
        for expert in self.experts:
            judged = [row for row, reference in enumerate(references) if reference is not None or not expert.needs_hq]
            shown = [row for row in judged if finals[row] is not None]
            found = score_images(expert, [finals[row] for row in shown], [references[row] for row in shown])
            values = dict(zip(shown, found, strict=True))
            for row in judged:
                scores[row].append(values.get(row, 0.0))
        return [sum(row) / len(row) if row else None for row in scores]


def generation_reward(completions: Sequence[str], experts: Sequence[str] = DEFAULT_EXPERTS, device: str = "cpu",
                      **columns: Any) -> list[float | None]:
    """`GenerationReward(experts, device)` as a plain function; experts are made at the first call and kept."""
    return GenerationReward(tuple(experts), device)(completions, **columns)


def _final_image(text: str, images: Sequence[Image.Image] | None) -> Image.Image | None:
    shown = [image for image in images or () if image is not None and min(image.size) > 0]
    if len(shown) < len(IMAGE_SECTIONS) or not parse_chain(text).is_well_formed:
        return None
    return shown[-1]
