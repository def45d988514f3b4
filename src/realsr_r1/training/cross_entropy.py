"""Cross-entropy together with log Z, which z-loss needs, and with one gradient of the size of the logits.

Composed of torch's functions it would take four of them: a chain of 512 px has over a GiB of logits in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (K, vocabulary) and labels (K,) -> each one's negative log-likelihood and log Z, (K,) float32."""
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
