"""Under autocast, the input of a layer's attention and feed-forward part is converted once.

Autocast itself converts it for each of the three and two matrices it goes into, and keeps each copy for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.chameleon.modeling_chameleon import ChameleonAttention, ChameleonMLP


def convert_inputs_once(policy: nn.Module) -> None:
    """Values stay what they were; the gradients of the copies are summed in autocast's type. Without autocast nothing changes."""
    for module in policy.modules():
        if isinstance(module, (ChameleonAttention, ChameleonMLP)):
            module.register_forward_pre_hook(_convert, with_kwargs=True)


def _convert(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    states = args[0] if args else kwargs["hidden_states"]
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
