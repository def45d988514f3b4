"""RMS norms with one gradient: values bit for bit transformers', fewer passes over memory, and less kept for the backward pass.

Composed of torch's functions a norm keeps its input in float32, the normalised states, and goes some ten times over them in its
backward. Here it keeps its input as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm


def with_one_gradient(policy: nn.Module) -> None:
    """Let the policy's RMS norms compute their gradients so. Weights, names and values stay what they were."""
    for module in policy.modules():
        if type(module) is ChameleonRMSNorm:
            module.__class__ = RMSNorm


class RMSNorm(ChameleonRMSNorm):
    """weight * states / sqrt(mean(states²) + eps), of states (..., hidden), the mean in float32 (arXiv 1910.07467)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States, normalised over the last dimension."""
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _Norm(torch.autograd.Function):
    """With n = r x and r = 1 / sqrt(mean(x²) + eps): d x = r (w g - n mean(w g n)), d w = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        exact = states.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(states, scale, weight)
        return weight * (exact * scale).to(states.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        states, scale, weight = ctx.saved_tensors
        normed = states.float() * scale
        products = (gradient * normed.to(states.dtype)).float().flatten(0, -2)
        with torch.autocast(gradient.device.type, enabled=False):
            means = (products @ weight.float() / weight.numel()).view_as(scale)
        of_states = (gradient * weight).float().addcmul_(normed, means, value=-1).mul_(scale)
        return of_states.to(states.dtype), products.sum(0).to(weight.dtype), None
