"""Completions of one prompt in one forward that computes the prompt once, with exact gradients; samples side by side.

A microbatch is packed into one row: a group's prompt, then its completions, then the next group's. Layers see plain
tokens; only attention knows the packing: prompts attend to themselves, completions to their prompt and to themselves.
A sample on its own is a prompt without completions: so a row holds samples of any lengths, and nothing is padded.
Attends by whichever attention of transformers the policy has, or on a CPU by `realsr_r1.models.lumina.cpu_attention`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.models.chameleon.modeling_chameleon import eager_attention_forward

from realsr_r1.models.lumina import cpu_attention


@dataclass(frozen=True)
class SharedPrompts:
    """How a packed row is laid out: for each group, its prompt, then its completions of one length.

    `groups`: (tokens of the prompt, number of completions), in order; `length`: tokens of every completion in the row
    (shorter ones are padded at their ends, where nothing looks at the padding).
    """

    groups: tuple[tuple[int, int], ...]
    length: int

    @classmethod
    def of_samples(cls, lengths: Iterable[int]) -> SharedPrompts:
        """A row of whole samples of these lengths, each seeing only itself."""
        return cls(tuple((length, 0) for length in lengths), 0)

    @property
    def has_completions(self) -> bool:
        """Whether any group has one (else the row is samples)."""
        return any(count for _, count in self.groups)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Of a row of samples: tokens of a sample, and how many of that length are neighbours."""
        return [(length, len(list(run))) for length, run in groupby(length for length, _ in self.groups)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each group's prompt, and of all its completions, in the row's order."""
        return [tokens for prompt, count in self.groups for tokens in (prompt, count * self.length)]

    def spans(self) -> Iterator[tuple[slice, slice, int]]:
        """For each group: where its prompt is, where its completions are, and how many they are."""
        start = 0
        for prompt_length, count in self.groups:
            middle = start + prompt_length
            end = middle + count * self.length
            yield slice(start, middle), slice(middle, end), count
            start = end

    def positions(self) -> torch.Tensor:
        """Positions of the packed tokens, (1, T) int64: completions go on from their prompt."""
        pieces = []
        for prompt_length, count in self.groups:
            own = torch.arange(prompt_length, prompt_length + self.length)
            pieces += [torch.arange(prompt_length), own.repeat(count)]
        return torch.cat(pieces)[None]

    def predecessors(self) -> torch.Tensor:
        """Packed places whose states predict the completions, (completions, length + 1) int64.

        The first is the prompt's last token; the last one predicts what follows the row's last token.
        """
        rows = []
        for prompt, own, count in self.spans():
            first = torch.full((count, 1), prompt.stop - 1)
            rows.append(torch.cat((first, torch.arange(own.start, own.stop).view(count, self.length)), dim=1))
        return torch.cat(rows)


def masks(config: PretrainedConfig, layout: SharedPrompts, like: torch.Tensor) -> list[tuple[Any, Any]]:
    """For each group, the masks of its prompt and of its completions, as the config's attention wants them; of a row of samples,
    for each of its `runs` (mask, None).

    `like`: the embeddings, for their type and device.
    """
    make = partial(AttentionMaskInterface()[config._attn_implementation], batch_size=1, dtype=like.dtype,
                   device=like.device, config=config)
    if not layout.has_completions:
        return [(make(q_length=length, kv_length=length), None) for length, _ in layout.runs]
    return [(make(q_length=prompt, kv_length=prompt),
             make(q_length=layout.length, kv_length=prompt + layout.length, q_offset=prompt) if count else None)
            for prompt, count in layout.groups]


def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SharedPrompts,
           masks: list[tuple[Any, Any]]) -> torch.Tensor:
    """Queries (T, heads, head_dim), keys and values (T, kv heads, head_dim) of a packed row -> (T, heads, head_dim).

    `module`: the attention, for its config and scaling; `masks`: those of its config.
    """
    name = module.config._attn_implementation
    dropout = module.attention_dropout if module.training else 0.0
    if name == "sdpa" and not dropout and not layout.has_completions and cpu_attention.suits(value, max(layout.lengths)):
        return cpu_attention.attend(query, key, value, layout.runs, module.scaling)
    function = AttentionInterface().get_interface(name, eager_attention_forward)

    def inside(states: Iterable[torch.Tensor], mask: Any) -> torch.Tensor:
        """(B, heads, T, head_dim) each -> (B * T, heads, head_dim)."""
        return function(module, *states, mask, dropout=dropout, scaling=module.scaling)[0].flatten(0, 1)

    # Split and not sliced: the gradient of a slice is as long as the whole row.
    if not layout.has_completions:
        runs = layout.runs
        pieces = zip(*(states.split([length * count for length, count in runs]) for states in (query, key, value)), strict=True)
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
