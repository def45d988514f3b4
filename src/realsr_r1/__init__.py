"""RealSR-R1: VLCoT-GRPO, reinforcement learning for a policy that restores photos step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realsr_r1.restoring import Restoration, Restorer

__all__ = ["Restoration", "Restorer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what restores photos only when it is used: it needs torch."""
    if name in __all__:
        from realsr_r1 import restoring

        return getattr(restoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
