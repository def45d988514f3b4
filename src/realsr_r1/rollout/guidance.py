"""Classifier-free guidance for a batch whose rows enter and leave images at different times.

A row has an unconditional branch while it is in an image span. The branch sees only the tokens from
the image start on, at positions from 0. This module knows row numbers and scores; the policy's
caches belong to the decoder.
"""

from __future__ import annotations

import torch


class UnconditionalRows:
    """Which rows have an unconditional branch now.

    `rows` (U,) int64: slot -> row. `slot_of_row` (R,): the inverse.
    """

    def __init__(self, batch: int, device: torch.device):
        self.rows = torch.empty(0, dtype=torch.int64, device=device)
        self.slot_of_row = torch.zeros(batch, dtype=torch.int64, device=device)

    def update(self, inside: torch.Tensor) -> torch.Tensor | None:
        """Follow `inside` (R,) bool, which says which rows are inside an image.

        Rows that left an image lose their slots, and rows that entered one get slots at the end.
        Returns the old slots that stay, in their new order, or None when no row left.
        """
        stays = inside[self.rows]
        gone = not bool(stays.all())
        newcomers = inside.clone()
        newcomers[self.rows] = False
        if gone or bool(newcomers.any()):
            self.rows = torch.cat((self.rows[stays], newcomers.nonzero()[:, 0]))
            self.slot_of_row[self.rows] = torch.arange(len(self.rows), device=self.rows.device)
        return stays.nonzero()[:, 0] if gone else None

    def keep(self, rows: torch.Tensor) -> torch.Tensor:
        """Keep only `rows` (n,) int64 of the batch, renumbered; returns the slots that stay."""
        new_number = torch.full_like(self.slot_of_row, -1)
        new_number[rows] = torch.arange(len(rows), device=rows.device)
        renumbered = new_number[self.rows]
        stays = (renumbered >= 0).nonzero()[:, 0]
        self.rows = renumbered[stays]
        self.slot_of_row = torch.zeros_like(rows)
        self.slot_of_row[self.rows] = torch.arange(len(stays), device=rows.device)
        return stays


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `uncond + scale * (cond - uncond)` for scores of one shape.

    The formula follows Ho and Salimans, arXiv 2207.12598.
    """
    return torch.lerp(unconditional, conditional, scale)
