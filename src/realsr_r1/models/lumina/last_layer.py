"""The last layer on a packed row of samples: its output projection and MLP run only where something is predicted.

Nobody looks at the states of the other tokens: of a question, after its keys and values are made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.chameleon.modeling_chameleon import ChameleonDecoderLayer, ChameleonSwinDecoderLayer


def adopt(layer: nn.Module) -> None:
    """Make a policy's last layer one of these. Its weights and their names stay."""
    layer.__class__ = LastSwinLayer if isinstance(layer, ChameleonSwinDecoderLayer) else LastLayer


class LastLayer(ChameleonDecoderLayer):
    """Chameleon's. With `predicting` (K,), places in the row, states (1, T, hidden) become (1, K, hidden)."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, predicting: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """States -> states, and weights as transformers gives them."""
        if predicting is None:
            return super().forward(hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), *args, places=predicting, **kwargs)
        states = hidden_states.index_select(1, predicting) + attended
        return (states + self.mlp(self.post_attention_layernorm(states)),)


class LastSwinLayer(ChameleonSwinDecoderLayer):
    """The same with norms after attention and MLP."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, predicting: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """States -> states, and weights as transformers gives them."""
        if predicting is None:
            return super().forward(hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(hidden_states, *args, places=predicting, **kwargs)
        states = hidden_states.index_select(1, predicting) + self.input_layernorm(attended)
        return (states + self.post_attention_layernorm(self.mlp(states)),)
