"""Rewards: functions with TRL's signature, `f(completions, **columns) -> list[float | None]`.

Each reward has a file of its own. A completion at fault scores 0.0. A record that lacks the truth
gets None, and TRL leaves it out.
"""

from realsr_r1.rewards.degradation import degradation_reward
from realsr_r1.rewards.format import format_reward
from realsr_r1.rewards.generation import generation_reward
from realsr_r1.rewards.registry import load_reward_funcs
from realsr_r1.rewards.understanding import understanding_reward

__all__ = ["degradation_reward", "format_reward", "generation_reward", "load_reward_funcs",
           "understanding_reward"]
