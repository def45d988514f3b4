"""Rewards: plain functions with TRL's signature, `f(completions, **columns) -> list[float | None]`,
one file each.

A fault of the completion scores 0.0; a record that lacks the truth gets None, which TRL leaves out.
"""

from realsr_r1.rewards.degradation import degradation_reward
from realsr_r1.rewards.format import format_reward
from realsr_r1.rewards.generation import generation_reward
from realsr_r1.rewards.registry import load_reward_funcs
from realsr_r1.rewards.understanding import understanding_reward

__all__ = ["degradation_reward", "format_reward", "generation_reward", "load_reward_funcs",
           "understanding_reward"]
