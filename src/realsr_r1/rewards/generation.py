"""The generation reward: how visual experts (experts.py) score a completion's final image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import parse_chain
from realsr_r1.rewards.experts import DEFAULT_EXPERTS, create_experts, expert_needs_hq, score_images
from realsr_r1.rewards.reward import Reward, RewardSettings

if TYPE_CHECKING:
    from PIL import Image


class GenerationReward:
    """A reward function: the mean of the experts' scores (0..1) of each completion's last image.

    `experts`: names, see experts.py; the experts are made here, on `device`. `spec`: the chain, by
    default the published one. Raises `UserError` for an unknown expert and for one that can't be
    loaded.

    Call the object with TRL's signature. `images`: the images of each completion. `hq`: the HQ
    image of each record, or None; where it is None, the mean leaves out the experts that need it. A
    chain that is not well formed or has fewer images than it should scores 0.0. A record that no
    expert can judge (all need the missing HQ image) gets None.
    """

    __name__ = "generation_reward"  # TRL logs a reward under its __name__

    def __init__(self, experts: Sequence[str] = DEFAULT_EXPERTS, device: str = "cpu",
                 spec: ChainSpec | None = None):
        self.experts = create_experts(experts, device)
        self.spec = spec or ChainSpec.published()

    def __call__(self, completions: Sequence[str],
                 images: Sequence[Sequence[Image.Image] | None] | None = None,
                 hq: Sequence[Image.Image | None] | None = None, **columns: Any) -> list[float | None]:
        own_images = [None] * len(completions) if images is None else images
        references = [None] * len(completions) if hq is None else hq
        finals = [self._final_image(text, own) for text, own in zip(completions, own_images, strict=True)]
        scores: list[list[float]] = [[] for _ in completions]
        for expert in self.experts:
            judged = [row for row, reference in enumerate(references) if reference is not None
                      or not expert.needs_hq]
            shown = [row for row in judged if finals[row] is not None]
            found = score_images(expert, [finals[row] for row in shown], [references[row] for row in shown])
            values = dict(zip(shown, found, strict=True))
            for row in judged:
                scores[row].append(values.get(row, 0.0))
        return [sum(row) / len(row) if row else None for row in scores]

    def _final_image(self, text: str, images: Sequence[Image.Image] | None) -> Image.Image | None:
        shown = [image for image in images or () if image is not None and min(image.size) > 0]
        if len(shown) < len(self.spec.images) or not parse_chain(text, self.spec).is_well_formed:
            return None
        return shown[-1]


def generation_reward(completions: Sequence[str], experts: Sequence[str] = DEFAULT_EXPERTS,
                      device: str = "cpu",
                      spec: ChainSpec | None = None, **columns: Any) -> list[float | None]:
    """Call `GenerationReward(experts, device, spec)` as a plain function.

    Experts are made at the first call and kept.
    """
    return GenerationReward(tuple(experts), device, spec)(completions, **columns)


def _columns(settings: RewardSettings) -> tuple[str, ...]:
    """Return the HQ image's column only where all experts need it.

    Otherwise the other experts score the records without an HQ image.
    """
    return ("hq",) if all([expert_needs_hq(name) for name in settings.experts]) else ()


GENERATION = Reward("generation", "restoration", _columns,
                    lambda settings: GenerationReward(settings.experts, settings.device, settings.chain))
