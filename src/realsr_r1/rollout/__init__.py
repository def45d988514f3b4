"""Rollouts: completions sampled from the policy under a grammar, with guidance inside images.

Knows ids, no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realsr_r1.rollout.config import RolloutConfig

if TYPE_CHECKING:
    from realsr_r1.rollout.engine import Rollout, RolloutEngine

__all__ = ["Rollout", "RolloutConfig", "RolloutEngine"]


def __getattr__(name: str) -> Any:
    """Import the engine only when it is used: it needs torch, which reading settings doesn't."""
    if name in ("Rollout", "RolloutEngine"):
        from realsr_r1.rollout import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
