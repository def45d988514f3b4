"""The cold start's losses: cross-entropy with log Z (for z-loss), and means by section.

The cross-entropy here keeps one gradient with the size of the logits. Composed of torch's functions
it would need four, and a chain of 512 px has over a GiB of logits in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the negative log-likelihood and log Z of each label, (K,) float32 each.

    `logits` (K, vocabulary), `labels` (K,).
    """
    return _CrossEntropy.apply(logits, labels)


class _CrossEntropy(torch.autograd.Function):
    """d nll = p - [label], d log Z = p."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = logits.log_softmax(-1, dtype=torch.float32)
        nll = -log_probs.gather(-1, labels[:, None])[:, 0]
        ctx.save_for_backward(log_probs, labels)
        ctx.dtype = logits.dtype
        return nll, logits.gather(-1, labels[:, None])[:, 0] + nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_nll: torch.Tensor, of_log_z: torch.Tensor) -> tuple[torch.Tensor, None]:
        log_probs, labels = ctx.saved_tensors
        gradient = log_probs.exp().mul_((of_nll + of_log_z)[:, None])
        gradient.scatter_add_(-1, labels[:, None], -of_nll[:, None])
        return gradient.to(ctx.dtype), None


class SectionLosses:
    """Sums of the answers' losses by part since the last reading.

    They are the negative log-likelihood, the number of tokens, and log²Z. `parts`: the names of an
    answer's parts (`ChainSpec.parts`), in the order of their numbers.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts
        self.sums: torch.Tensor | None = None

    def add(self, nll: torch.Tensor, log_z: torch.Tensor, sections: torch.Tensor) -> None:
        """Add the losses, log Z and sections of tokens, (K,) each."""
        columns = torch.stack((nll, torch.ones_like(nll), log_z.square()), dim=1).double()
        sums = columns.new_zeros(len(self.parts), 3).index_add_(0, sections, columns)
        self.sums = sums if self.sums is None else self.sums + sums

    def read(self, accelerator: Any) -> dict[str, float]:
        """Return the means over the tokens of all ranks for each part that occurred.

        All ranks must call it.
        """
        rows = accelerator.reduce(self.sums).tolist()
        self.sums = None
        tokens = sum(row[1] for row in rows)
        return {"nll": sum(row[0] for row in rows) / tokens, "z_loss": sum(row[2] for row in rows) / tokens,
                **{f"loss/{name}": row[0] / row[1] for name, row in zip(self.parts, rows, strict=True)
                   if row[1]}}
