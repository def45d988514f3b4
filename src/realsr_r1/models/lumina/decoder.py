"""The policy's decoder for rollouts: feeds rows one token or several, with caches allocated once.

There are caches for prompts, completions and unconditional branches. Rows of the same prompt share
its keys and values. Conditional and unconditional rows go through the layers in one batch. Knows
the policy's layers; no grammar, no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from realsr_r1.models.lumina.attention import QK_NORM_EPS


class LuminaDecoder:
    """Steps a policy over R rows.

    `step` feeds all rows one token each; `feed` feeds several, and each row starts from its own
    place. `model`, `lm_head`: the policy's. The other arguments are those of
    `realsr_r1.models.protocol.Policy.make_decoder`, and the `Decoder` there explains the methods.
    """

    def __init__(self, model: nn.Module, lm_head: nn.Module, prompts: Sequence[Sequence[int]],
                 prompt_of_row: torch.Tensor, max_new_tokens: int, max_span: int, code_ids: torch.Tensor):
        self.model, self.lm_head, self.code_ids = model, lm_head, code_ids
        # The head's rows for the image codes, side by side; a head with an adapter has no such
        # rows.
        self.code_head = lm_head.weight[code_ids] if type(lm_head) is nn.Linear else None
        self.device = prompt_of_row.device
        self.steps = 0
        self.prompt_of_row = prompt_of_row
        self.prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self._prefill(prompts)
        rows = len(prompt_of_row)
        self.own = [self._empty_cache(rows, max_new_tokens) for _ in self.model.layers]
        self.unconditional = [self._empty_cache(rows, max_span) for _ in self.model.layers]
        self._group_rows()
        self._rotary_table(int(self.prompt_lengths.max()) + max_new_tokens)
        self.norms = [_HeadNorms(layer.self_attn) for layer in self.model.layers]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        longest = max(len(prompt) for prompt in prompts)
        caches, last = [], []
        for prompt in prompts:  # one forward for each distinct prompt
            cache = DynamicCache()
            ids = torch.tensor([prompt], device=self.device)
            states = self.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            caches.append(cache)
            last.append(states[0, -1])
        self.prompt_states = torch.stack(last)  # (prompts, hidden)

        def gather(states: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
            return torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[2])).to(dtype) for one in states])

        # For each layer: keys and values, (prompts, kv heads, longest prompt, head_dim) each.
        self.shared = []
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
            for layer in layers:  # drop what is gathered, since a prompt's cache takes gigabytes
                layer.keys = layer.values = None
            dtype = values[0].dtype  # under autocast the normed keys have a wider type
            self.shared.append((gather(keys, dtype), gather(values, dtype)))
        self.prompt_mask = None  # (prompts, 1, 1, longest): what is padding
        if len({len(prompt) for prompt in prompts}) > 1:
            columns = torch.arange(longest, device=self.device)
            self.prompt_mask = (columns >= self.prompt_lengths[:, None])[:, None, None]

    def _empty_cache(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        like = self.shared[0][0]
        shape = (rows, like.shape[1], length, like.shape[3])
        # Zeros, because columns that a row hasn't reached yet get the weight 0, and 0 times an
        # arbitrary value may be NaN.
        return like.new_zeros(shape), like.new_zeros(shape)

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
        self.kind = torch.tensor([0] * config.num_attention_heads + [1] * config.num_key_value_heads,
                                 device=self.device)

    def _group_rows(self) -> None:
        """Lay rows out as (prompts, largest group).

        `place` (prompts * largest,): place -> row. `place_of_row` (R,): row -> place. Both are
        None when the rows lie so already.
        """
        sizes = torch.bincount(self.prompt_of_row, minlength=len(self.prompt_lengths))
        self.largest = int(sizes.max())
        order = torch.argsort(self.prompt_of_row, stable=True)
        number = torch.arange(len(order), device=self.device)
        within = number - (sizes.cumsum(0) - sizes)[self.prompt_of_row[order]]
        self.place_of_row = torch.empty_like(order)
        self.place_of_row[order] = self.prompt_of_row[order] * self.largest + within
        self.place = torch.zeros(len(sizes) * self.largest, dtype=torch.int64, device=self.device)
        self.place[self.place_of_row] = number
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
        return _widened(self.lm_head(states))

    def code_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states (n, hidden) into scores of the image codes, (n, codes).

        They are at least float32.
        """
        if self.code_head is None:
            return self.logits(states)[:, self.code_ids]
        return _widened(F.linear(states, self.code_head))

    def step(self, tokens: torch.Tensor, rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row its token (R,), and the unconditional branches of `rows` (U,) the same."""
        count, column = len(tokens), self.steps
        self.steps += 1
        positions = self.prompt_lengths[self.prompt_of_row] + column
        if len(rows):
            tokens, positions = torch.cat((tokens, tokens[rows])), torch.cat((positions, places))
            branch_window = self._window(self.unconditional, places[:, None], branch_columns)

        def attend(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            keys, values = self.own[index]
            keys[:, :, column], values[:, :, column] = key[:count], value[:count]
            attended = self._attend(index, query[:count], keys[:, :, :column + 1], values[:, :, :column + 1])
            if len(rows):
                keys, values = branch_window.write(self.unconditional[index], key[count:], value[count:])
                of_branches = _attend_own(query[count:], keys, values, branch_window.hidden)
                attended = torch.cat((attended, of_branches))
            return attended

        states = self._through_layers(tokens, positions, attend)
        return states[:count], states[count:]

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor, own_columns: int, rows: torch.Tensor,
             places: torch.Tensor, branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row n tokens (R, n), and the branches of `rows` the same.

        `starts` (R,): the place of the first of them in the row's completion.
        """
        (count, n), self.steps = tokens.shape, own_columns
        ahead = torch.arange(n, device=self.device)
        columns, places = starts[:, None] + ahead, places[:, None] + ahead
        positions = torch.cat((self.prompt_lengths[self.prompt_of_row, None] + columns, places))
        own_window = self._window(self.own, columns, own_columns)
        branch_window = self._window(self.unconditional, places, branch_columns)

        def attend(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            # (R + U, kv heads, n, heads / kv heads, head_dim)
            query = query.unflatten(0, (-1, n)).transpose(1, 2)
            together = query.flatten(2, 3)
            keys, values = own_window.write(self.own[index], key[:count * n], value[:count * n])
            attended = self._attend(index, together[:count], keys, values, own_window.hidden)
            if len(rows):
                cache = self.unconditional[index]
                keys, values = branch_window.write(cache, key[count * n:], value[count * n:])
                of_branches = _attend_own(together[count:], keys, values, branch_window.hidden)
                attended = torch.cat((attended, of_branches))
            return attended.reshape(query.shape).transpose(1, 2)

        tokens = torch.cat((tokens, tokens[rows])).flatten()
        states = self._through_layers(tokens, positions.flatten(), attend)
        return states[:count * n].unflatten(0, (-1, n)), states[count * n:].unflatten(0, (-1, n))

    def _through_layers(self, tokens: torch.Tensor, positions: torch.Tensor,
                        attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Turn ids (B,) at their positions (B,) into hidden states (B, hidden).

        `attend(layer, query, key, value)` stores keys and values and attends; shapes are those of
        `_project`.
        """
        states = self.model.embed_tokens(tokens)
        cos, sin = self.cos[positions[:, None], self.kind], self.sin[positions[:, None], self.kind]
        swin = self.model.config.swin_norm
        for index, layer in enumerate(self.model.layers):
            first, second, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
            inside = states if swin else _normed(first, states)
            attended = attend(index, *self._project(index, inside, cos, sin))
            attended = attended.reshape(len(states), -1)
            if swin:
                states = states + _normed(first, layer.self_attn.o_proj(attended))
                states = states + _normed(second, mlp(states))
            else:
                states = _added(states, layer.self_attn.o_proj, attended)
                inside = _normed(second, states)
                gated = mlp.act_fn(mlp.gate_proj(inside)) * mlp.up_proj(inside)
                states = _added(states, mlp.down_proj, gated)
        return _normed(self.model.norm, states)

    def _window(self, caches: list[tuple[torch.Tensor, torch.Tensor]], columns: torch.Tensor,
                in_use: int) -> _Window:
        """Return where tokens go in `caches`, and which columns they can't see.

        `columns` (B, n): the columns of the tokens. Only the first `in_use` columns are looked at.
        """
        _, heads, length, _ = caches[0][0].shape
        first = torch.arange(len(columns) * heads, device=self.device).view(-1, 1, heads) * length
        queries = columns.repeat_interleave(self.model.config.num_attention_heads // heads, dim=1)
        hidden = torch.arange(in_use, device=self.device) > queries[:, None, :, None]
        return _Window((first + columns[..., None]).flatten(), hidden)

    def _project(self, index: int, states: torch.Tensor, cos: torch.Tensor,
                 sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values of states (B, hidden), in the values' type.

        Queries are (B, kv heads, heads / kv heads, head_dim), keys and values
        (B, kv heads, head_dim). Queries and keys are normed and rotated, and queries are scaled with
        their `cos` and `sin`, (B, heads + kv heads, head_dim).
        """
        attention, norms = self.model.layers[index].self_attn, self.norms[index]
        batch, head_dim = len(states), attention.head_dim
        both = torch.cat((attention.q_proj(states), attention.k_proj(states)), dim=-1)
        both = norms(both.view(batch, -1, head_dim))
        half = head_dim // 2
        swapped = torch.cat((both[..., half:], both[..., :half]), dim=-1)
        both = torch.addcmul(both * cos, swapped, sin)
        query, key = both.split((attention.num_heads, attention.num_key_value_heads), dim=1)
        query = query.reshape(batch, attention.num_key_value_heads, -1, head_dim)
        value = attention.v_proj(states).view(batch, -1, head_dim)
        return query.to(value.dtype), key.to(value.dtype), value

    def _attend(self, index: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Let queries (R, kv heads, n, head_dim) attend to their prompt's and their own tokens.

        `keys`, `values`: those of their own tokens. Columns that are `hidden` are left out.
        """
        n = query.shape[2]
        prompt_keys, prompt_values = self.shared[index]
        length = prompt_keys.shape[2]
        grouped = self._to_groups(query)
        shared = _scores(grouped, prompt_keys)
        if self.prompt_mask is not None:
            shared = shared.masked_fill(self.prompt_mask, -float("inf"))
        own = _scores(query, keys)
        if hidden is not None:
            own = own.masked_fill_(hidden, -float("inf"))
        scores = torch.cat((self._to_rows(shared, n), own), dim=-1)
        weights = _softmax(scores, values.dtype)
        shared = self._to_groups(weights[..., :length]) @ prompt_values
        return self._to_rows(shared, n) + weights[..., length:] @ values

    def _to_groups(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn (R, heads, n, d) into (prompts, heads, largest group * n, d)."""
        _, heads, n, width = rows.shape
        rows = rows if self.place is None else rows[self.place]
        groups = rows.reshape(-1, self.largest, heads, n, width).transpose(1, 2)
        return groups.reshape(-1, heads, self.largest * n, width)

    def _to_rows(self, groups: torch.Tensor, n: int) -> torch.Tensor:
        """Do the inverse of `_to_groups`."""
        _, heads, _, width = groups.shape
        rows = groups.view(-1, heads, self.largest, n, width).transpose(1, 2).reshape(-1, heads, n, width)
        return rows if self.place is None else rows[self.place_of_row]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""
        used = self.steps
        for cache in self.own:
            for tensor in cache:
                tensor[:len(rows), :, :used] = tensor[rows, :, :used]
        self.own = [(keys[:len(rows)], values[:len(rows)]) for keys, values in self.own]
        prompts, self.prompt_of_row = torch.unique(self.prompt_of_row[rows], return_inverse=True)
        if len(prompts) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[prompts]
            for layer, (keys, values) in enumerate(self.shared):  # one at a time, since they are large
                self.shared[layer] = keys[prompts], values[prompts]
            self.prompt_mask = None if self.prompt_mask is None else self.prompt_mask[prompts]
        self._group_rows()

    def keep_slots(self, slots: torch.Tensor, branch_columns: int) -> None:
        """Move the unconditional branches in `slots` (n,) to slots 0 to n-1."""
        for cache in self.unconditional:
            for tensor in cache:
                tensor[:len(slots), :, :branch_columns] = tensor[slots, :, :branch_columns]


class _Window(NamedTuple):
    """Where the next n tokens of B rows go in a flattened cache, and which columns they can't see.

    `places` (B * n * kv heads,). `hidden` (B, 1, n * heads / kv heads, columns in use) bool.
    """

    places: torch.Tensor
    hidden: torch.Tensor

    def write(self, cache: tuple[torch.Tensor, torch.Tensor], key: torch.Tensor,
              value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B * n, kv heads, head_dim); returns the cache's columns in use."""
        for stored, new in zip(cache, (key, value), strict=True):
            stored.view(-1, stored.shape[-1]).index_copy_(0, self.places, new.flatten(0, 1).to(stored.dtype))
        rows, _, _, in_use = self.hidden.shape
        return cache[0][:rows, :, :in_use], cache[1][:rows, :, :in_use]


def _attend_own(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                hidden: torch.Tensor) -> torch.Tensor:
    """Let queries (B, kv heads, n, head_dim) attend to keys and values that aren't `hidden`."""
    return _softmax(_scores(query, keys).masked_fill_(hidden, -float("inf")), values.dtype) @ values


def _normed(norm: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Apply a `RMSNorm` in one operation where the device has one."""
    return F.rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _added(states: torch.Tensor, layer: nn.Module, inside: torch.Tensor) -> torch.Tensor:
    """Add what a linear layer makes of `inside`, in one operation where it is a plain matrix.

    Adapters and layers in few bits are called as they are; so is all under autocast, which would
    round the states.
    """
    is_plain = type(layer) is nn.Linear and layer.bias is None and layer.weight.dtype == states.dtype
    if is_plain and inside.dtype == states.dtype:
        return torch.addmm(states, inside, layer.weight.t())
    return states + layer(inside)


def _widened(scores: torch.Tensor) -> torch.Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Multiply queries (B, heads, n, head_dim) with keys (B, heads, columns, head_dim).

    A GPU keeps the products of narrow types as it sums them up, in float32, as the attention of the
    loss does. A CPU has no such product; there they have the type of the keys.
    """
    if query.device.type == "cuda" and query.dtype.itemsize == 2:
        products = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), out_dtype=torch.float32)
        return products.unflatten(0, query.shape[:2])
    return query @ keys.transpose(-1, -2)


def _softmax(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Compute the softmax over the last dimension, at least in float32, and return it in `dtype`."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(dtype)


class _HeadNorms:
    """The q and k norms of a layer, applied to queries and keys side by side.

    They lie as (B, heads + kv heads, head_dim).
    """

    def __init__(self, attention: nn.Module):
        norms = (attention.q_norm, attention.k_norm)
        self.weight = torch.cat([norm.weight.repeat_interleave(norm.heads_per_row, dim=0) for norm in norms])
        self.bias = torch.cat([norm.bias.repeat_interleave(norm.heads_per_row, dim=0) for norm in norms])

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, F.layer_norm(states, states.shape[-1:], eps=QK_NORM_EPS), self.weight)
