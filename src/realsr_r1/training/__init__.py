"""The two training stages: what they share, and a folder each (`cold_start`, `grpo`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realsr_r1.training.config import ChainGRPOConfig
    from realsr_r1.training.grpo.trainer import ChainGRPOTrainer

__all__ = ["ChainGRPOConfig", "ChainGRPOTrainer"]


def __getattr__(name: str) -> Any:
    """The trainer and its settings, when they are asked for: they need TRL and torch."""
    if name == "ChainGRPOConfig":
        from realsr_r1.training.config import ChainGRPOConfig

        return ChainGRPOConfig
    if name == "ChainGRPOTrainer":
        from realsr_r1.training.grpo.trainer import ChainGRPOTrainer

        return ChainGRPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
