"""Dropout on what a decoder layer adds to its input, as Lumina-mGPT trains with.

Hooks, so that the model folder's layout stays what it is: a saved policy knows nothing of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn
from transformers.models.chameleon.modeling_chameleon import ChameleonDecoderLayer, ChameleonSwinDecoderLayer


def add_dropout(policy: nn.Module, rate: float) -> None:
    """Drop a share `rate` of what attention and MLP of every layer add to the residual stream, in training mode."""
    for layer in policy.modules():
        if isinstance(layer, ChameleonSwinDecoderLayer):  # adds the norms of both
            added = (layer.input_layernorm, layer.post_attention_layernorm)
        elif isinstance(layer, ChameleonDecoderLayer):
            added = (layer.self_attn, layer.mlp)
        else:
            continue
        for module in added:
            module.register_forward_hook(partial(_drop, rate))


def _drop(rate: float, module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # attention gives its weights, too
        return (F.dropout(output[0], rate, module.training), *output[1:])
    return F.dropout(output, rate, module.training)
