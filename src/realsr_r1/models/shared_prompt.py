"""Completions of one prompt in one forward that computes the prompt once, with exact gradients; samples side by side.

A microbatch is packed into one row: a group's prompt, then its completions, then the next group's. Layers see plain
tokens; only attention knows the packing: prompts attend to themselves, completions to their prompt and to themselves.
A sample on its own is a prompt without completions: so a row holds samples of any lengths, and nothing is padded.
Plugs in as an attention implementation of transformers, around the one that the policy already has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.models.chameleon.modeling_chameleon import eager_attention_forward

from realsr_r1.models import cpu_attention

PREFIX = "shared_prompt_"  # of the names of our attention implementations; the rest is the one inside


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


def share_prompts(config: PretrainedConfig) -> None:
    """Make the policy of this config able to take `shared_prompts`; other forwards stay what they were."""
    inner = config._attn_implementation
    if inner.startswith(PREFIX):
        return
    name = PREFIX + inner
    function = AttentionInterface().get_interface(inner, eager_attention_forward)
    AttentionInterface.register(name, partial(_attention, inner, function))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[inner])
    config._attn_implementation = name


def masks(config: PretrainedConfig, layout: SharedPrompts, like: torch.Tensor) -> list[tuple[Any, Any]]:
    """For each group, the masks of its prompt and of its completions, as the attention inside wants them; of a row of samples,
    for each of its `runs` (mask, None).

    `like`: the embeddings, for their type and device. Raises `ValueError` without `share_prompts`.
    """
    if not config._attn_implementation.startswith(PREFIX):
        raise ValueError("shared_prompts needs share_prompts(policy.config) first")
    make = partial(AttentionMaskInterface()[config._attn_implementation], batch_size=1, dtype=like.dtype,
                   device=like.device, config=config)
    if not layout.has_completions:
        return [(make(q_length=length, kv_length=length), None) for length, _ in layout.runs]
    return [(make(q_length=prompt, kv_length=prompt),
             make(q_length=layout.length, kv_length=prompt + layout.length, q_offset=prompt) if count else None)
            for prompt, count in layout.groups]


def _attention(inner: str, function: Callable[..., Any], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
               value: torch.Tensor, attention_mask: Any, shared_prompts: SharedPrompts | None = None,
               shared_masks: list[tuple[Any, Any]] | None = None, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    """transformers' attention interface: queries, keys, values (B, heads, T, head_dim) -> (B, T, heads, head_dim).

    With `shared_prompts` B is 1, and `shared_masks` (from `masks`) stand for `attention_mask`. `function` is what
    transformers calls `inner`.
    """
    def inside(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        name, module.config._attn_implementation = module.config._attn_implementation, inner  # FlashAttention reads it there
        try:
            return function(*args, **kwargs)
        finally:
            module.config._attn_implementation = name

    if shared_prompts is None:
        return inside(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    # Split and not sliced, here and below: the gradient of a slice is as long as the whole row.
    if not shared_prompts.has_completions:
        runs = shared_prompts.runs
        lengths = [length * count for length, count in runs]
        pieces = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
        for (length, count), (mask, _), piece in zip(runs, shared_masks, pieces, strict=True):
            rows = [states[0].unflatten(1, (count, length)).transpose(0, 1) for states in piece]  # (count, heads, length, d)
            suits = inner == "sdpa" and cpu_attention.suits(rows[2], **kwargs)
            own = cpu_attention.attend(module, *rows, **kwargs) if suits else inside(module, *rows, mask, **kwargs)[0]
            outputs.append(own.flatten(0, 1)[None])
        return torch.cat(outputs, dim=1), None
    pieces = zip(*(states.split(shared_prompts.lengths, dim=2) for states in (query, key, value)), strict=True)
    for (_, count), (prompt_mask, own_mask) in zip(shared_prompts.groups, shared_masks, strict=True):
        prompt, own = next(pieces), next(pieces)
        outputs.append(inside(module, *prompt, prompt_mask, **kwargs)[0])
        if not own[0].shape[2]:
            continue
        # (1, heads, count * length, d) -> (count, heads, length, d), each after its prompt's keys and values
        rows = [states[0].unflatten(1, (count, -1)).transpose(0, 1) for states in own]
        keys, values = (torch.cat((states.expand(count, -1, -1, -1), mine), dim=2)
                        for states, mine in zip(prompt[1:], rows[1:], strict=True))
        outputs.append(inside(module, rows[0], keys, values, own_mask, **kwargs)[0].flatten(0, 1)[None])
    return torch.cat(outputs, dim=1), None
