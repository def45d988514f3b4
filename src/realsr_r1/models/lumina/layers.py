"""A layer of the policy, and what the cold start changes in layers.

It changes gradients of norms, conversions under autocast, and dropout. Weights, their names and all
values stay those of transformers' Chameleon. Knows states; attention knows packed rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.chameleon.modeling_chameleon import ChameleonMLP, ChameleonRMSNorm

from realsr_r1.models.lumina.attention import LuminaAttention
from realsr_r1.models.lumina.config import LuminaConfig


class RMSNorm(ChameleonRMSNorm):
    """weight * states / sqrt(mean(states²) + eps), with the mean in float32 (arXiv 1910.07467).

    States are (..., hidden). With `has_one_gradient` its values are the same to the bit, and its
    gradients differ by rounding. Composed of torch's functions, a norm keeps its input in float32
    and the normalised states, and reads them some ten times in its backward; with one gradient it
    keeps its input as it is.
    """

    has_one_gradient = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise states over the last dimension."""
        if self.has_one_gradient:
            return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)


class _Norm(torch.autograd.Function):
    """The norm n = r x with r = 1 / sqrt(mean(x²) + eps), times the weight w, and its gradient.

    With the gradient g of the result: d x = r (w g - n mean(w g n)), d w = sum(g n).
    """

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


class LuminaLayer(GradientCheckpointingLayer):
    """Attention and MLP, each added to the residual stream, with a norm before each.

    With `swin_norm` in the config the norms come after them. The last layer of a policy runs its
    output projection and its MLP only at the places that are asked for: the states at other places
    aren't used any more once their keys and values are made.
    """

    def __init__(self, config: LuminaConfig, index: int):
        super().__init__()
        self.norms_last, self.is_last = bool(config.swin_norm), index == config.num_hidden_layers - 1
        # The order matters: a seed's random numbers go to the same weights as in transformers.
        self.self_attn = LuminaAttention(config, index)
        self.mlp = ChameleonMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, predicting: torch.Tensor | None = None,
                **kwargs: Any) -> tuple[torch.Tensor]:
        """Turn states (B, T, hidden) into the next layer's states.

        With `predicting` (K,), places in a packed row, the last layer returns (1, K, hidden).
        `kwargs`: those of the attention.
        """
        places = predicting if self.is_last else None
        normed = hidden_states if self.norms_last else self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, places=places, **kwargs)
        residual = hidden_states if places is None else hidden_states.index_select(1, places)
        if self.norms_last:
            states = residual + self.input_layernorm(attended)
            return (states + self.post_attention_layernorm(self.mlp(states)),)
        states = residual + attended
        return (states + self.mlp(self.post_attention_layernorm(states)),)


def give_norms_one_gradient(policy: nn.Module) -> None:
    """Let the RMS norms of a policy compute their gradients in one piece.

    This is faster, and less is kept for the backward.
    """
    for module in policy.modules():
        if isinstance(module, RMSNorm):
            module.has_one_gradient = True


def convert_inputs_once(policy: nn.Module) -> None:
    """Under autocast, convert the input of a layer's attention and of its MLP only once.

    Otherwise each matrix that it goes into converts it again. Values stay the same; the gradients
    of the copies are summed in autocast's type. Without autocast nothing changes.
    """
    for module in policy.modules():
        if isinstance(module, (LuminaAttention, ChameleonMLP)):
            module.register_forward_pre_hook(_convert)


def _convert(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    (states,) = args
    device = states.device.type
    return (states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states,)


def add_dropout(policy: nn.Module, rate: float) -> None:
    """Drop a share `rate` of what attention and MLP of every layer add to the residual stream.

    It happens in training mode only, as in Lumina-mGPT's training. It is done with hooks, so a
    saved policy knows nothing of it.
    """
    for layer in policy.modules():
        if isinstance(layer, LuminaLayer):
            added = ((layer.input_layernorm, layer.post_attention_layernorm) if layer.norms_last
                     else (layer.self_attn, layer.mlp))
            for module in added:
                module.register_forward_hook(partial(_drop, rate))


def _drop(rate: float, module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # attention returns its weights too
        return (F.dropout(output[0], rate, module.training), *output[1:])
    return F.dropout(output, rate, module.training)
