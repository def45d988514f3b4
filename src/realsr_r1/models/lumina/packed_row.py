"""Attention in a packed row: a prompt once with its completions beside it, or samples side by side.

Gradients are exact. `PackedRow` says how a microbatch lies in a row. Layers see plain tokens, and
only attention knows the packing: prompts attend to themselves, completions to their prompt and
themselves, and nothing is padded. It uses the attention of transformers that the policy has, or on
a CPU `realsr_r1.models.lumina.cpu_attention`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.models.chameleon.modeling_chameleon import eager_attention_forward

from realsr_r1.models.lumina import cpu_attention
from realsr_r1.models.protocol import PackedRow


def masks(config: PretrainedConfig, layout: PackedRow, like: torch.Tensor) -> list[tuple[Any, Any]]:
    """Return the masks of each group's prompt and of its completions.

    They have the form that the config's attention needs. For a row of samples: (mask, None) for
    each of its `runs`. `like`: the embeddings, which give type and device. On a GPU the mask of
    completions for torch's own attention (sdpa) is a rule, not a table, for its fastest kernel
    takes no table.
    """
    def of_completions(prompt: int) -> Any:
        length = layout.length
        if config._attn_implementation == "sdpa" and like.device.type == "cuda":
            return causal_lower_right(length, prompt + length)
        return make(q_length=length, kv_length=prompt + length, q_offset=prompt)

    make = partial(AttentionMaskInterface()[config._attn_implementation], batch_size=1, dtype=like.dtype,
                   device=like.device, config=config)
    if not layout.has_completions:
        return [(make(q_length=length, kv_length=length), None) for length, _ in layout.runs]
    return [(make(q_length=prompt, kv_length=prompt), of_completions(prompt) if count else None)
            for prompt, count in layout.groups]


def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           layout: PackedRow, masks: list[tuple[Any, Any]]) -> torch.Tensor:
    """Attend in a packed row; returns (T, heads, head_dim).

    `query` (T, heads, head_dim), `key` and `value` (T, kv heads, head_dim). `module`: the
    attention, which has config and scaling. `masks`: see the function `masks`.
    """
    name = module.config._attn_implementation
    dropout = module.attention_dropout if module.training else 0.0
    is_plain = name == "sdpa" and not dropout and not layout.has_completions
    if is_plain and cpu_attention.suits(value, max(layout.lengths)):
        return cpu_attention.attend(query, key, value, layout.runs, module.scaling)
    function = AttentionInterface().get_interface(name, eager_attention_forward)

    def inside(states: Iterable[torch.Tensor], mask: Any) -> torch.Tensor:
        """Attend with states (B, heads, T, head_dim); returns (B * T, heads, head_dim)."""
        return function(module, *states, mask, dropout=dropout, scaling=module.scaling)[0].flatten(0, 1)

    # Split the row, don't slice it: the gradient of a slice is as long as the whole row.
    if not layout.has_completions:
        runs = layout.runs
        pieces = zip(*(states.split([length * count for length, count in runs])
                       for states in (query, key, value)), strict=True)
        return torch.cat([inside((_rows(states, count) for states in piece), mask)
                          for (_, count), (mask, _), piece in zip(runs, masks, pieces, strict=True)])
    outputs = []
    pieces = zip(*(states.split(layout.lengths) for states in (query, key, value)), strict=True)
    for (_, count), (prompt_mask, own_mask) in zip(layout.groups, masks, strict=True):
        prompt, own = [_rows(states, 1) for states in next(pieces)], next(pieces)
        outputs.append(inside(prompt, prompt_mask))
        if not len(own[0]):
            continue
        # The keys and values of each completion follow those of its prompt.
        query, *others = (_rows(states, count) for states in own)
        keys, values = (torch.cat((shared.expand(count, -1, -1, -1), mine), dim=2)
                        for shared, mine in zip(prompt[1:], others, strict=True))
        outputs.append(inside((query, keys, values), own_mask))
    return torch.cat(outputs)


def _rows(states: torch.Tensor, count: int) -> torch.Tensor:
    """Turn (count * T, heads, head_dim) into (count, heads, T, head_dim)."""
    return states.unflatten(0, (count, -1)).transpose(1, 2)
