"""The policy's decoder for rollouts: feeds rows one token or several, with caches allocated once.

There are caches for prompts, completions and unconditional branches. Rows of the same prompt share
its keys and values. Conditional and unconditional rows go through the layers in one batch. Knows
the policy's layers, whose attention is in `torch_attention` and `gpu_attention`; no grammar, no
sampling.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from realsr_r1.models.lumina.caches import Cache
from realsr_r1.models.lumina.projections import LayerProjections, product
from realsr_r1.models.lumina.torch_attention import HeadNorms, StepAttention, TorchAttention

if TYPE_CHECKING:
    from realsr_r1.models.lumina.gpu_attention import GpuAttention

# Of a layer's number and what its projections say to what the tokens see.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LuminaDecoder:
    """Steps a policy over R rows.

    `step` feeds all rows one token each; `feed` feeds several, and each row starts from its own
    place. `model`, `lm_head`: the policy's. The other arguments are those of
    `realsr_r1.models.protocol.Policy.make_decoder`, and the `Decoder` there explains the methods.
    """

    def __init__(self, model: nn.Module, lm_head: nn.Module, prompts: Sequence[Sequence[int]],
                 prompt_of_row: torch.Tensor, max_new_tokens: int, max_span: int, code_ids: torch.Tensor,
                 int8_caches: bool = False):
        self.model, self.lm_head, self.code_ids = model, lm_head, code_ids
        # The head's rows for the image codes, side by side; a head with an adapter has no such
        # rows.
        self.code_head = lm_head.weight[code_ids] if type(lm_head) is nn.Linear else None
        self.device = prompt_of_row.device
        self.steps = 0
        self.prompt_of_row = prompt_of_row
        self.prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self._prefill(prompts, int8_caches)
        rows = len(prompt_of_row)
        self.own = [cache.empty(rows, max_new_tokens) for cache in self.shared]
        self.unconditional = [cache.empty(rows, max_span) for cache in self.shared]
        self._group_rows()
        self._rotary_table(int(self.prompt_lengths.max()) + max_new_tokens)
        self.matrices = [LayerProjections(layer, self.prompt_states.dtype) for layer in self.model.layers]
        self.norms = [HeadNorms(layer.self_attn) for layer in self.model.layers]
        cache = self.shared[0]
        self.attention = attention_for(self.device, cache.stored[0].shape[-1], cache.dtype)

    def _prefill(self, prompts: Sequence[Sequence[int]], int8_caches: bool) -> None:
        longest = max(len(prompt) for prompt in prompts)
        caches, last = [], []
        for prompt in prompts:  # one forward for each distinct prompt
            cache = DynamicCache()
            ids = torch.tensor([prompt], device=self.device)
            states = self.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            caches.append(cache)
            last.append(states[0, -1].clone())  # not a view, which would keep all of them
        self.prompt_states = torch.stack(last)  # (prompts, hidden)

        def gather(states: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
            return torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[2])).to(dtype) for one in states])

        self.shared: list[Cache] = []  # for each layer, of (prompts, kv heads, longest prompt, head_dim)
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
            for layer in layers:  # drop what is gathered, since a prompt's cache takes gigabytes
                layer.keys = layer.values = None
            dtype = values[0].dtype  # under autocast the normed keys have a wider type
            self.shared.append(Cache.of(gather(keys, dtype), gather(values, dtype), int8_caches))
        self.prompt_mask = None  # (prompts, 1, 1, longest): what is padding
        if len({len(prompt) for prompt in prompts}) > 1:
            columns = torch.arange(longest, device=self.device)
            self.prompt_mask = (columns >= self.prompt_lengths[:, None])[:, None, None]

    def _rotary_table(self, length: int) -> None:
        positions = torch.arange(length, device=self.device)[None]
        cos, sin = self.model.rotary_emb(self.prompt_states.float(), positions)  # (1, length, head_dim)
        half = sin.shape[-1] // 2
        # The minus sign is the one in transformers' rotate_half.
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        # For queries, which are scaled as they are rotated, and for keys: (length, 2, head_dim).
        factors = torch.tensor([[self.model.layers[0].self_attn.scaling], [1.0]], device=self.device)
        dtype = self.prompt_states.dtype
        self.cos, self.sin = ((table[0, :, None] * factors).to(dtype) for table in (cos, sin))
        config = self.model.config
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.kind = torch.tensor([0] * config.num_attention_heads + [1] * config.num_key_value_heads,
                                 device=self.device)

    def _group_rows(self) -> None:
        """Lay rows out as (prompts, largest group).

        `row_of_place` (prompts * largest,): place -> row, -1 where a smaller group is filled up.
        `place` is that with row 0 there, and `place_of_row` (R,): row -> place. Both are None when
        the rows lie so already.
        """
        sizes = torch.bincount(self.prompt_of_row, minlength=len(self.prompt_lengths))
        self.largest = int(sizes.max())
        order = torch.argsort(self.prompt_of_row, stable=True)
        number = torch.arange(len(order), device=self.device)
        within = number - (sizes.cumsum(0) - sizes)[self.prompt_of_row[order]]
        self.place_of_row = torch.empty_like(order)
        self.place_of_row[order] = self.prompt_of_row[order] * self.largest + within
        self.row_of_place = torch.full((len(sizes) * self.largest,), -1, device=self.device)
        self.row_of_place[self.place_of_row] = number
        self.place = self.row_of_place.clamp(min=0)
        if len(self.place) == len(number) and bool((self.place == number).all()):
            self.place = self.place_of_row = None

    @property
    def first_rows(self) -> torch.Tensor:
        """Return the first row of each prompt, (prompts,)."""
        first = torch.arange(len(self.prompt_lengths), device=self.device) * self.largest
        return first if self.place is None else self.place[first]

    def by_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """Lay one value for each row, (R,), out by prompt, (prompts, largest group).

        The places that fill up a smaller group have no meaning.
        """
        return (values if self.place is None else values[self.place]).view(-1, self.largest)

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values in the order of rows: the inverse of `by_prompt`."""
        return values.flatten() if self.place is None else values.flatten()[self.place_of_row]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states (n, hidden) into scores of all ids, (n, vocabulary).

        They are at least float32.
        """
        if type(self.lm_head) is nn.Linear and self.lm_head.bias is None:
            return _widened(product(states.to(self.lm_head.weight.dtype), self.lm_head.weight))
        return _widened(self.lm_head(states))

    def code_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states (n, hidden) into scores of the image codes, (n, codes).

        They are at least float32.
        """
        if self.code_head is None:
            return self.logits(states)[:, self.code_ids]
        return _widened(product(states.to(self.code_head.dtype), self.code_head))

    def step(self, tokens: torch.Tensor, rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row its token (R,), and the unconditional branches of `rows` (U,) the same."""
        kind = StepAttention if self.attention is TorchAttention else self.attention
        starts = torch.full_like(tokens, self.steps)
        states, branch_states = self._fed(kind, tokens[:, None], starts, self.steps + 1, rows, places,
                                          branch_columns)
        return states[:, 0], branch_states[:, 0]

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor, own_columns: int, rows: torch.Tensor,
             places: torch.Tensor, branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row n tokens (R, n), and the branches of `rows` the same.

        `starts` (R,): the place of the first of them in the row's completion.
        """
        return self._fed(self.attention, tokens, starts, own_columns, rows, places, branch_columns)

    def _fed(self, kind: Callable[..., Attend], tokens: torch.Tensor, starts: torch.Tensor, own_columns: int,
             rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        (count, n), self.steps = tokens.shape, own_columns
        ahead = torch.arange(n, device=self.device)
        attend = kind(self, starts[:, None] + ahead, places[:, None] + ahead, own_columns, branch_columns)
        states = self._through_layers(torch.cat((tokens, tokens[rows])).flatten(), attend)
        return states[:count * n].unflatten(0, (-1, n)), states[count * n:].unflatten(0, (-1, n))

    def _through_layers(self, tokens: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Turn ids (B,) into hidden states (B, hidden)."""
        states = self.model.embed_tokens(tokens)
        swin = self.model.config.swin_norm
        for index, (layer, matrices) in enumerate(zip(self.model.layers, self.matrices, strict=True)):
            first, second = layer.input_layernorm, layer.post_attention_layernorm
            inside = states if swin else _normed(first, states)
            attended = attend(index, matrices.query(inside), matrices.key(inside), matrices.value(inside))
            if swin:
                states = states + _normed(first, matrices.output(attended))
                states = states + _normed(second, matrices.down(matrices.gated(states)))
            else:
                states = matrices.output.added(states, attended)
                states = matrices.down.added(states, matrices.gated(_normed(second, states)))
        return _normed(self.model.norm, states)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""
        for cache in self.own:
            cache.move(rows, self.steps)
        self.own = [cache.first(len(rows)) for cache in self.own]
        prompts, self.prompt_of_row = torch.unique(self.prompt_of_row[rows], return_inverse=True)
        if len(prompts) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[prompts]
            for layer, cache in enumerate(self.shared):  # one at a time, since they are large
                self.shared[layer] = cache.select(prompts)
            self.prompt_mask = None if self.prompt_mask is None else self.prompt_mask[prompts]
        self._group_rows()

    def keep_slots(self, slots: torch.Tensor, branch_columns: int) -> None:
        """Move the unconditional branches in `slots` (n,) to slots 0 to n-1."""
        for cache in self.unconditional:
            cache.move(slots, branch_columns)


@functools.cache
def attention_for(device: torch.device, head_dim: int,
                  dtype: torch.dtype) -> type[TorchAttention] | type[GpuAttention]:
    """Return the kernels on a GPU where Triton can build them, and torch's functions elsewhere."""
    if device.type != "cuda":
        return TorchAttention
    try:
        from realsr_r1.models.lumina import gpu_attention

        gpu_attention.build(device)
    except Exception as error:  # no Triton, no compiler, no headers, a cache folder that can't be written
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"Triton can't build kernels here ({reason[-1]}), so rollouts are slower; realsr-r1 doctor "
              "looks for its compiler", file=sys.stderr)
        return TorchAttention
    return gpu_attention.GpuAttention if gpu_attention.fits(head_dim, dtype) else TorchAttention


def _normed(norm: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Apply a `RMSNorm` in one operation where the device has one."""
    return F.rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _widened(scores: torch.Tensor) -> torch.Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
