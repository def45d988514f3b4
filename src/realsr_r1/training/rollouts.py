"""The rollout engine's settings, as GRPO's settings have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realsr_r1.rollout import RolloutConfig

if TYPE_CHECKING:
    from realsr_r1.training.config import ChainGRPOConfig


def rollout_config(args: ChainGRPOConfig, num_generations: int) -> RolloutConfig:
    """The `RolloutConfig` of a training run, for groups of `num_generations`."""
    return RolloutConfig(
        num_generations=num_generations, max_new_tokens=args.max_completion_length,
        temperature=args.rollout_temperature, guidance_scale=args.guidance_scale, text_top_k=args.text_top_k,
        image_top_k_min=args.image_top_k_min, image_top_k_max=args.image_top_k_max, grammar=args.grammar,
        max_text_tokens=args.max_text_tokens, seed=args.seed)
