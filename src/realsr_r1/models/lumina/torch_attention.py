"""A decoder's attention with torch's functions, for any device and float type.

Rows of the same prompt ask its keys and values in one product. On a GPU
`realsr_r1.models.lumina.gpu_attention` does the same with fewer kernels.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from realsr_r1.models.lumina.attention import QK_NORM_EPS
from realsr_r1.models.lumina.caches import Cache


class Caches(Protocol):
    """What attention reads of a decoder (`realsr_r1.models.lumina.decoder.LuminaDecoder`).

    `shared`, `own`, `unconditional`: for each layer keys and values of prompts, completions and
    branches. `prompt_lengths` (prompts,).
    `prompt_of_row` (R,). `prompt_mask` (prompts, 1, 1, longest): what is padding. `row_of_place`,
    `place`, `place_of_row`: rows laid out as (prompts, `largest` group). `cos`, `sin`
    (length, 2, head_dim): of queries, scaled, and of keys, which `kind` (heads + kv heads,) tells
    apart. `group`: query heads of a key's head.
    """

    shared: list[Cache]
    own: list[Cache]
    unconditional: list[Cache]
    norms: list[HeadNorms]
    prompt_lengths: torch.Tensor
    prompt_of_row: torch.Tensor
    prompt_mask: torch.Tensor | None
    largest: int
    row_of_place: torch.Tensor
    place: torch.Tensor | None
    place_of_row: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor
    kind: torch.Tensor
    group: int


class TorchAttention:
    """What a pass of a decoder needs besides the layers' states.

    The pass feeds n tokens to each of R rows and U branches, B = (R + U) n tokens in this order.
    `columns` (R, n) and `places` (U, n) int64: the tokens' columns in the caches of completions and
    branches, of which the first `own_columns` and `branch_columns` are looked at.
    """

    def __init__(self, decoder: Caches, columns: torch.Tensor, places: torch.Tensor,
                 own_columns: int, branch_columns: int):
        self.decoder = decoder
        self.count, self.n = columns.shape
        self.branches = len(places)
        starts = decoder.prompt_lengths[decoder.prompt_of_row, None]
        positions = torch.cat((starts + columns, places)).flatten()[:, None]
        self.cos, self.sin = decoder.cos[positions, decoder.kind], decoder.sin[positions, decoder.kind]
        self._look_at(columns, own_columns, places, branch_columns)

    def _look_at(self, columns: torch.Tensor, own_columns: int, places: torch.Tensor,
                 branch_columns: int) -> None:
        self.own_window = _window(self.decoder.own, self.decoder.group, columns, own_columns)
        self.branch_window = _window(self.decoder.unconditional, self.decoder.group, places, branch_columns)

    def __call__(self, index: int, query: torch.Tensor, key: torch.Tensor,
                 value: torch.Tensor) -> torch.Tensor:
        """Return what the tokens see in layer `index`, (B, heads * head_dim).

        `query` (B, heads * head_dim), `key`, `value` (B, kv heads * head_dim): as they come from
        their projections.
        """
        query, key, value = self._placed(index, query, key, value)
        return self._attend(index, query, key, value).flatten(1)

    def _attend(self, index: int, query: torch.Tensor, key: torch.Tensor,
                value: torch.Tensor) -> torch.Tensor:
        """Queries are (B, kv heads, heads / kv heads, head_dim), keys and values
        (B, kv heads, head_dim); returns the shape of the queries.
        """
        tokens = self.count * self.n
        query = query.unflatten(0, (-1, self.n)).transpose(1, 2)
        together = query.flatten(2, 3)  # (R + U, kv heads, n * heads / kv heads, head_dim)
        keys, values = self.own_window.write(self.decoder.own[index], key[:tokens], value[:tokens])
        attended = self._with_prompts(index, together[:self.count], keys, values, self.own_window.hidden)
        if self.branches:
            cache = self.decoder.unconditional[index]
            keys, values = self.branch_window.write(cache, key[tokens:], value[tokens:])
            of_branches = _attend_own(together[self.count:], keys, values, self.branch_window.hidden)
            attended = torch.cat((attended, of_branches))
        return attended.reshape(query.shape).transpose(1, 2).flatten(0, 1)

    def _placed(self, index: int, query: torch.Tensor, key: torch.Tensor,
                value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Norm and rotate queries and keys, scale queries; all get the values' type."""
        norms = self.decoder.norms[index]
        head_dim = norms.weight.shape[-1]
        both = torch.cat((query, key), dim=-1).unflatten(-1, (-1, head_dim))
        both = norms(both)
        half = head_dim // 2
        swapped = torch.cat((both[..., half:], both[..., :half]), dim=-1)
        both = torch.addcmul(both * self.cos, swapped, self.sin)
        value = value.unflatten(-1, (-1, head_dim))
        query, key = both.split((both.shape[1] - value.shape[1], value.shape[1]), dim=1)
        query = query.reshape(len(query), value.shape[1], -1, head_dim)
        return query.to(value.dtype), key.to(value.dtype), value

    def _with_prompts(self, index: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                      hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Let queries (R, kv heads, n, head_dim) attend to their prompt's and their own tokens.

        `keys`, `values`: those of their own tokens. Columns that are `hidden` are left out.
        """
        decoder, n = self.decoder, query.shape[2]
        cache = decoder.shared[index]
        prompt_keys, prompt_values = cache.read(len(decoder.prompt_lengths), length := cache.columns)
        grouped = self._to_groups(query)
        shared = _scores(grouped, prompt_keys)
        if decoder.prompt_mask is not None:
            shared = shared.masked_fill(decoder.prompt_mask, -float("inf"))
        own = _scores(query, keys)
        if hidden is not None:
            own = own.masked_fill_(hidden, -float("inf"))
        scores = torch.cat((self._to_rows(shared, n), own), dim=-1)
        weights = _softmax(scores, values.dtype)
        shared = self._to_groups(weights[..., :length]) @ prompt_values
        return self._to_rows(shared, n) + weights[..., length:] @ values

    def _to_groups(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn (R, heads, n, d) into (prompts, heads, largest group * n, d)."""
        decoder, (_, heads, n, width) = self.decoder, rows.shape
        rows = rows if decoder.place is None else rows[decoder.place]
        groups = rows.reshape(-1, decoder.largest, heads, n, width).transpose(1, 2)
        return groups.reshape(-1, heads, decoder.largest * n, width)

    def _to_rows(self, groups: torch.Tensor, n: int) -> torch.Tensor:
        """Do the inverse of `_to_groups`."""
        decoder, (_, heads, _, width) = self.decoder, groups.shape
        rows = groups.view(-1, heads, decoder.largest, n, width).transpose(1, 2).reshape(-1, heads, n, width)
        return rows if decoder.place is None else rows[decoder.place_of_row]


class StepAttention(TorchAttention):
    """Attention where all rows feed the column `own_columns` - 1: no completion has hidden columns."""

    def _look_at(self, columns: torch.Tensor, own_columns: int, places: torch.Tensor,
                 branch_columns: int) -> None:
        self.in_use = own_columns
        if self.branches:
            self.branch_window = _window(self.decoder.unconditional, self.decoder.group, places,
                                         branch_columns)

    def _attend(self, index: int, query: torch.Tensor, key: torch.Tensor,
                value: torch.Tensor) -> torch.Tensor:
        count, in_use = self.count, self.in_use
        cache = self.decoder.own[index]
        cache.write_column(in_use - 1, key[:count], value[:count])
        attended = self._with_prompts(index, query[:count], *cache.read(count, in_use))
        if self.branches:
            keys, values = self.branch_window.write(self.decoder.unconditional[index], key[count:],
                                                    value[count:])
            of_branches = _attend_own(query[count:], keys, values, self.branch_window.hidden)
            attended = torch.cat((attended, of_branches))
        return attended


class HeadNorms:
    """The q and k norms of a layer, applied to queries and keys side by side.

    They lie as (B, heads + kv heads, head_dim).
    """

    def __init__(self, attention: nn.Module):
        norms = (attention.q_norm, attention.k_norm)
        self.weight = torch.cat([norm.weight.repeat_interleave(norm.heads_per_row, dim=0) for norm in norms])
        self.bias = torch.cat([norm.bias.repeat_interleave(norm.heads_per_row, dim=0) for norm in norms])

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, F.layer_norm(states, states.shape[-1:], eps=QK_NORM_EPS), self.weight)


class _Window(NamedTuple):
    """Where the next n tokens of B rows go in a flattened cache, and which columns they can't see.

    `places` (B * n * kv heads,). `hidden` (B, 1, n * heads / kv heads, columns in use) bool.
    """

    places: torch.Tensor
    hidden: torch.Tensor

    def write(self, cache: Cache, key: torch.Tensor,
              value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B * n, kv heads, head_dim); returns the cache's columns in use."""
        cache.write(self.places, key.flatten(0, 1), value.flatten(0, 1))
        rows, _, _, in_use = self.hidden.shape
        return cache.read(rows, in_use)


def _window(caches: list[Cache], group: int, columns: torch.Tensor, in_use: int) -> _Window:
    """Return where tokens go in `caches`, and which columns they can't see.

    `columns` (B, n): the columns of the tokens. `group`: query heads of a key's head. Only the first
    `in_use` columns are looked at.
    """
    _, heads, length, _ = caches[0].stored[0].shape
    first = torch.arange(len(columns) * heads, device=columns.device).view(-1, 1, heads) * length
    queries = columns.repeat_interleave(group, dim=1)
    hidden = torch.arange(in_use, device=columns.device) > queries[:, None, :, None]
    return _Window((first + columns[..., None]).flatten(), hidden)


def _attend_own(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                hidden: torch.Tensor) -> torch.Tensor:
    """Let queries (B, kv heads, n, head_dim) attend to keys and values that aren't `hidden`."""
    return _softmax(_scores(query, keys).masked_fill_(hidden, -float("inf")), values.dtype) @ values


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
