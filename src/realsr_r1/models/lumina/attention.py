"""The policy's attention: transformers' Chameleon attention with q/k norms in the published layout.

It also works on packed rows. Knows states and positions; `realsr_r1.models.lumina.packed_row` says
which tokens of a packed row see each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.chameleon.modeling_chameleon import ChameleonAttention

from realsr_r1.models.lumina.config import LuminaConfig
from realsr_r1.models.lumina.packed_row import attend
from realsr_r1.models.protocol import PackedRow

QK_NORM_EPS = 1e-5  # the epsilon of Chameleon's layer norm over a head


class SharedHeadNorm(nn.Module):
    """Layer norm over head_dim whose scale and shift are shared by several heads.

    Scale and shift are (rows, head_dim), and a row serves `num_heads / rows` heads. The published
    checkpoints hold one row for each model-parallel shard. We keep these rows, while transformers
    stores one for each head. So the heads of a row stay tied in training, and the weights can be
    written back in their published form.
    """

    def __init__(self, rows: int, num_heads: int, head_dim: int):
        super().__init__()
        if num_heads % rows:
            raise ValueError(f"{num_heads} heads can't share {rows} norms evenly")
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))
        self.heads_per_row = num_heads // rows

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise states (..., num_heads, head_dim) over the last dimension."""
        states = F.layer_norm(states, states.shape[-1:], eps=QK_NORM_EPS)
        weight = self.weight.repeat_interleave(self.heads_per_row, dim=0)
        return states * weight + self.bias.repeat_interleave(self.heads_per_row, dim=0)


class LuminaAttention(ChameleonAttention):
    """Chameleon's attention with a `SharedHeadNorm` each for queries and keys.

    With `shared_prompts`, states (1, T, hidden) are the packed row that they describe, and
    `shared_masks` are its masks. `places` (K,) are the places in the row whose result is needed.
    """

    def __init__(self, config: LuminaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        query_rows, key_rows = config.model_parallel_size, config.key_norm_rows or config.model_parallel_size
        self.q_norm = SharedHeadNorm(query_rows, self.num_heads, self.head_dim)
        self.k_norm = SharedHeadNorm(key_rows, self.num_key_value_heads, self.head_dim)

    def forward(self, hidden_states: torch.Tensor, *args: Any, shared_prompts: PackedRow | None = None,
                shared_masks: Any = None, places: torch.Tensor | None = None, **kwargs: Any
                ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended states, and the attention weights (None for a packed row)."""
        if shared_prompts is None:
            return super().forward(hidden_states, *args, **kwargs)
        # (T, heads, head_dim)
        query, key, value = (projection(hidden_states)[0].unflatten(-1, (-1, self.head_dim))
                             for projection in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = (table[0, :, None] for table in kwargs["position_embeddings"])
        query, key = rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin)
        attended = attend(self, query, key, value, shared_prompts, shared_masks).flatten(1)
        return self.o_proj((attended if places is None else attended.index_select(0, places))[None]), None


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (arXiv 2104.09864), bit for bit as transformers does.

    This needs fewer passes over memory, and for the gradient less than half of them, because in
    transformers' form autograd fills each half up with zeros. States (T, heads, head_dim). `cos`
    and `sin`, (T, 1, head_dim), need no gradient.
    """
    return _Rotation.apply(states, cos, sin)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: both halves have the same cos and sin."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotated = states * cos
    (upper, lower), (first, second), (sin, _) = (tensor.chunk(2, dim=-1) for tensor in (rotated, states, sin))
    upper.sub_(second * sin)
    lower.add_(first * sin)
    return rotated
