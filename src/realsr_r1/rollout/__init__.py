"""Rollouts: completions sampled from the policy under a grammar, with guidance inside images.

Knows ids, no text.
"""

from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.engine import Rollout, RolloutEngine

__all__ = ["Rollout", "RolloutConfig", "RolloutEngine"]
