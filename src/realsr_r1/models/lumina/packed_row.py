"""Attention in a packed row: completions of one prompt beside it, computed once, with exact
gradients; samples side by side.

How a microbatch lies in a row is said by `PackedRow`. Layers see plain tokens; only attention knows
the packing: prompts attend to themselves, completions to their prompt and to themselves, and
nothing is padded. Attends by whichever attention of transformers the policy has, or on a CPU by
`realsr_r1.models.lumina.cpu_attention`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.models.chameleon.modeling_chameleon import eager_attention_forward

from realsr_r1.models.lumina import cpu_attention
from realsr_r1.models.protocol import PackedRow


def masks(config: PretrainedConfig, layout: PackedRow, like: torch.Tensor) -> list[tuple[Any, Any]]:
    """The masks of each group's prompt and of its completions, as the config's attention wants
    them.

    Of a row of samples: (mask, None) for each of its `runs`. `like`: the embeddings, for their type
    and device.
    """
    make = partial(AttentionMaskInterface()[config._attn_implementation], batch_size=1, dtype=like.dtype,
                   device=like.device, config=config)
    if not layout.has_completions:
        return [(make(q_length=length, kv_length=length), None) for length, _ in layout.runs]
    return [(make(q_length=prompt, kv_length=prompt),
             make(q_length=layout.length, kv_length=prompt + layout.length, q_offset=prompt)
             if count else None)
            for prompt, count in layout.groups]


def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           layout: PackedRow, masks: list[tuple[Any, Any]]) -> torch.Tensor:
    """Queries (T, heads, head_dim), keys and values (T, kv heads, head_dim) of a packed row -> (T,
    heads, head_dim).

    `module`: the attention, for its config and scaling; `masks`: those of its config.
    """
    name = module.config._attn_implementation
    dropout = module.attention_dropout if module.training else 0.0
    is_plain = name == "sdpa" and not dropout and not layout.has_completions
    if is_plain and cpu_attention.suits(value, max(layout.lengths)):
        return cpu_attention.attend(query, key, value, layout.runs, module.scaling)
    function = AttentionInterface().get_interface(name, eager_attention_forward)

    def inside(states: Iterable[torch.Tensor], mask: Any) -> torch.Tensor:
        """(B, heads, T, head_dim) each -> (B * T, heads, head_dim)."""
        return function(module, *states, mask, dropout=dropout, scaling=module.scaling)[0].flatten(0, 1)

    # Split and not sliced: the gradient of a slice is as long as the whole row.
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
        # Each completion after its prompt's keys and values.
        query, *others = (_rows(states, count) for states in own)
        keys, values = (torch.cat((shared.expand(count, -1, -1, -1), mine), dim=2)
                        for shared, mine in zip(prompt[1:], others, strict=True))
        outputs.append(inside((query, keys, values), own_mask))
    return torch.cat(outputs)


def _rows(states: torch.Tensor, count: int) -> torch.Tensor:
    """(count * T, heads, head_dim) -> (count, heads, T, head_dim)."""
    return states.unflatten(0, (count, -1)).transpose(1, 2)
