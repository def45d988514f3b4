"""The generation reward: how visual experts (experts.py) score a completion's final image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.rewards.chain_images import chain_images, last_image, per_completion, references
from realsr_r1.rewards.experts import create_experts, expert_needs_hq, expert_weights, score_images
from realsr_r1.rewards.reward import Reward
from realsr_r1.rewards.settings import DEFAULT_EXPERTS, RewardSettings

if TYPE_CHECKING:
    from PIL import Image



class GenerationReward:
    """A reward function: the mean of the experts' scores (0..1) of each completion's last image.

    `experts`: names with their weights in the mean, see experts.py; the experts are made here, on
    `device`. `spec`: the chain, by default the published one. `weights`: folder where the experts'
    weights are looked for. `rule`: with "last", as in the published code, the last image of any
    completion is scored; with "chain" only that of a whole chain. Raises `UserError` for an unknown
    expert and for one that can't be loaded.

    Call the object with TRL's signature. `images`: the images of each completion. `hq`: the HQ
    image of each record, or None; where it is None, the mean leaves out the experts that need it. A
    chain that is not well formed or has fewer images than it should scores 0.0 (with the rule
    "last" only a completion without any image). A record that no expert can judge (all need the
    missing HQ image) gets None.
    """

    __name__ = "generation_reward"  # TRL logs a reward under its __name__

    def __init__(self, experts: Sequence[str] = DEFAULT_EXPERTS, device: str = "cpu",
                 spec: ChainSpec | None = None, weights: str | None = None, rule: str = "chain"):
        self.experts = create_experts(experts, device, weights)
        self.weights = expert_weights(experts)
        self.spec = spec or ChainSpec.published()
        self.rule = rule

    def __call__(self, completions: Sequence[str],
                 images: Sequence[Sequence[Image.Image] | None] | None = None,
                 hq: Sequence[Image.Image | None] | None = None, **columns: Any) -> list[float | None]:
        count = len(completions)
        originals = references(hq, count)
        chains = [last_image(own) if self.rule == "last" else chain_images(text, own, self.spec)
                  for text, own in zip(completions, per_completion(images, count), strict=True)]
        totals, weights = [0.0] * count, [0.0] * count
        for expert, weight in zip(self.experts, self.weights, strict=True):
            judged = [row for row in range(count) if originals[row] is not None or not expert.needs_hq]
            shown = [row for row in judged if chains[row] is not None]
            found = self._scores(expert, [chains[row] for row in shown], [originals[row] for row in shown])
            values = dict(zip(shown, found, strict=True))
            for row in judged:
                totals[row] += weight * values.get(row, 0.0)
                weights[row] += weight
        return [total / weight if weight else None for total, weight in zip(totals, weights, strict=True)]

    def _scores(self, expert: Any, chains: list[list[Image.Image]], hq: list[Any]) -> list[float]:
        """Score whole chains by one expert, from 0 to 1."""
        return score_images(expert, [chain[-1] for chain in chains], hq)


def generation_reward(completions: Sequence[str], experts: Sequence[str] = DEFAULT_EXPERTS,
                      device: str = "cpu",
                      spec: ChainSpec | None = None, **columns: Any) -> list[float | None]:
    """Call `GenerationReward(experts, device, spec)` as a plain function.

    Experts are made at the first call and kept.
    """
    return GenerationReward(tuple(experts), device, spec)(completions, **columns)


def expert_columns(settings: RewardSettings) -> tuple[str, ...]:
    """Return the HQ image's column only where all experts need it.

    Otherwise the other experts score the records without an HQ image.
    """
    return ("hq",) if all([expert_needs_hq(name) for name in settings.experts]) else ()


EXPERT_OPTIONS = ("expert_weights", "expert_device")

GENERATION = Reward("generation", "restoration", expert_columns,
                    lambda settings: GenerationReward(settings.experts, settings.place, settings.chain,
                                                      settings.expert_weights, settings.image_rule),
                    (*EXPERT_OPTIONS, "image_rule"), lambda settings: settings.experts)
