"""Restoring photos with a policy: sizes, tiles, colours, samples. Knows no command line.

The names here are loaded when they are used, since they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realsr_r1.restoring.restoration import Photo, Piece, Restoration
    from realsr_r1.restoring.restorer import Restorer

__all__ = ["Photo", "Piece", "Restoration", "Restorer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from realsr_r1.core.import_named import load_module

        load_module("realsr_r1.restoring.restorer")
        from realsr_r1.restoring import restoration, restorer

        return getattr(restorer if name == "Restorer" else restoration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
