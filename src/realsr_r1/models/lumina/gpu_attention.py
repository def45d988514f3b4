"""A decoder's attention on a GPU, in three Triton kernels a layer.

`_place` norms and rotates queries and keys and writes keys and values into the caches. `_attend`
reads the caches in pieces, all rows of a prompt together where they share its cache, and `_merge`
joins the pieces (arXiv 2205.14135; pieces side by side as in Flash-Decoding). They do what
`realsr_r1.models.lumina.torch_attention` does, which is the reference. Products are summed up in
float32. Where caches are int8 (`realsr_r1.models.lumina.caches`), scales are applied to scores and to
weights, so a tile is read as it is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from realsr_r1.models.lumina.attention import QK_NORM_EPS
from realsr_r1.models.lumina.caches import INT8_MAX

if TYPE_CHECKING:
    from realsr_r1.models.lumina.torch_attention import Caches

# Columns of a cache that one program reads, in tiles of this many bytes of keys; queries at once.
PIECE = 256
TILE_BYTES = 16_384
MOST_QUERIES = 64


class GpuAttention:
    """What a pass needs besides the layers' states, by the arguments of `TorchAttention`."""

    def __init__(self, decoder: Caches, columns: torch.Tensor, places: torch.Tensor,
                 own_columns: int, branch_columns: int):
        self.decoder = decoder
        (self.rows, self.n), self.branches = columns.shape, len(places)
        self.columns = torch.cat((columns, places)).flatten()
        starts = torch.cat((decoder.prompt_lengths[decoder.prompt_of_row],
                            decoder.prompt_lengths.new_zeros(self.branches)))
        self.positions = self.columns + starts.repeat_interleave(self.n, output_size=len(self.columns))
        self.in_use = own_columns, branch_columns

    def __call__(self, index: int, query: torch.Tensor, key: torch.Tensor,
                 value: torch.Tensor) -> torch.Tensor:
        """Do what `TorchAttention` does."""
        with torch.cuda.device_of(query):  # Triton starts kernels on the current device
            return self._attended(index, query, key, value)

    def _attended(self, index: int, query: torch.Tensor, key: torch.Tensor,
                  value: torch.Tensor) -> torch.Tensor:
        decoder, tokens = self.decoder, len(self.columns)
        norms, prompt = decoder.norms[index], decoder.shared[index]
        own_cache, branch_cache = decoder.own[index], decoder.unconditional[index]
        prompts, kv_heads, longest, head_dim = prompt.stored[0].shape
        heads = norms.weight.shape[0] - kv_heads
        group = heads // kv_heads
        own_length, branch_length = own_cache.columns, branch_cache.columns
        is_int8 = prompt.scales is not None
        # Caches of other types have no scales; what is given in their place isn't read.
        scales = [cache.scales or cache.stored for cache in (prompt, own_cache, branch_cache)]
        placed = torch.empty((tokens, heads, head_dim), dtype=prompt.dtype, device=query.device)
        _place[(tokens, heads + 2 * kv_heads)](
            query, key, value, norms.weight, norms.bias, decoder.cos, decoder.sin, self.positions,
            self.columns, placed, *own_cache.stored, *branch_cache.stored, *scales[1], *scales[2],
            self.rows, self.n, own_length, branch_length, heads, kv_heads, head_dim // 2, QK_NORM_EPS,
            is_int8, INT8_MAX, num_warps=1)

        shared, own = decoder.largest * self.n * group, self.n * group  # queries that read one cache
        block = min(max(triton.next_power_of_2(shared), 16), MOST_QUERIES)
        shared_blocks, own_blocks = triton.cdiv(shared, block), triton.cdiv(own, block)
        prompt_pieces, own_pieces, branch_pieces = (
            triton.cdiv(columns, PIECE) for columns in (longest, *self.in_use))
        pieces = max(prompt_pieces + own_pieces, branch_pieces)
        of_prompts, of_own = prompts * shared_blocks * prompt_pieces, self.rows * own_blocks * own_pieces
        programs = of_prompts + of_own + self.branches * own_blocks * branch_pieces
        parts = placed.new_empty((tokens, heads, pieces, head_dim), dtype=torch.float32)
        peaks, sums = (parts.new_empty((tokens, heads, pieces)) for _ in range(2))
        _attend[(programs, kv_heads)](
            placed, *prompt.stored, *own_cache.stored, *branch_cache.stored,
            *scales[0], *scales[1], *scales[2], decoder.prompt_lengths, decoder.row_of_place,
            self.columns, parts, peaks, sums,
            self.rows, self.n, decoder.largest, longest, own_length, branch_length,
            prompt_pieces, own_pieces, branch_pieces, shared_blocks, own_blocks, of_prompts, of_own, pieces,
            kv_heads, group, head_dim, block,
            max(16, min(128, TILE_BYTES // head_dim // placed.element_size())), PIECE, is_int8,
            num_warps=4, num_stages=2)
        attended = torch.empty_like(placed)
        _merge[(tokens, heads)](
            parts, peaks, sums, attended, self.rows * self.n, prompt_pieces + own_pieces,
            branch_pieces, pieces, heads, head_dim, triton.next_power_of_2(pieces), num_warps=4)
        return attended.flatten(1)


def fits(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernels can do heads of so many numbers: 16, 32, 64, ... up to 512 bytes.

    More of them don't fit into the shared memory of small cards.
    """
    return (16 <= head_dim == triton.next_power_of_2(head_dim)) and head_dim * dtype.itemsize <= 512


def build(device: torch.device) -> None:
    """Build the smallest kernel and run it; raises what goes wrong where Triton can't."""
    one = torch.ones(16, device=device)
    with torch.cuda.device_of(one):
        _merge[(1, 1)](one, one, one, torch.empty_like(one), 1, 1, 0, 1, 1, 16, 1, num_warps=4)


@triton.jit(do_not_specialize=["rows", "n", "own_length", "branch_length"])
def _place(query, key, value, weight, bias, cos, sin, positions, columns, placed,
           own_keys, own_values, branch_keys, branch_values,
           own_key_scales, own_value_scales, branch_key_scales, branch_value_scales,
           rows, n, own_length, branch_length,
           HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr,
           INT8: tl.constexpr, MOST: tl.constexpr):
    """Program (token, head): query heads first, then heads of keys, then of values."""
    token, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, HALF)
    row = token // n
    kv_head = (head - HEADS) % KV_HEADS
    column = tl.load(columns + token)
    if row < rows:
        place = (row * KV_HEADS + kv_head) * own_length.to(tl.int64) + column
        keys, values = own_keys + place * (2 * HALF), own_values + place * (2 * HALF)
        key_scale, value_scale = own_key_scales + place, own_value_scales + place
    else:
        place = ((row - rows) * KV_HEADS + kv_head) * branch_length.to(tl.int64) + column
        keys, values = branch_keys + place * (2 * HALF), branch_values + place * (2 * HALF)
        key_scale, value_scale = branch_key_scales + place, branch_value_scales + place
    if head >= HEADS + KV_HEADS:
        source = value + (token * KV_HEADS + kv_head) * (2 * HALF)
        _keep(values, value_scale, tl.load(source + half), tl.load(source + HALF + half), HALF, INT8, MOST)
    else:
        if head < HEADS:
            source = query + (token * HEADS + head) * (2 * HALF)
        else:
            source = key + (token * KV_HEADS + kv_head) * (2 * HALF)
        upper, lower = tl.load(source + half).to(tl.float32), tl.load(source + HALF + half).to(tl.float32)
        mean = (tl.sum(upper, 0) + tl.sum(lower, 0)) / (2 * HALF)
        upper, lower = upper - mean, lower - mean
        scale = tl.rsqrt((tl.sum(upper * upper, 0) + tl.sum(lower * lower, 0)) / (2 * HALF) + EPS)
        kind = (head >= HEADS).to(tl.int32)
        norm, turn = head * (2 * HALF) + half, (tl.load(positions + token) * 2 + kind) * (2 * HALF) + half
        upper = upper * scale * tl.load(weight + norm) + tl.load(bias + norm)
        lower = lower * scale * tl.load(weight + HALF + norm) + tl.load(bias + HALF + norm)
        turned = upper * tl.load(cos + turn) + lower * tl.load(sin + turn)
        turn += HALF
        lower = lower * tl.load(cos + turn) + upper * tl.load(sin + turn)
        if head < HEADS:
            target = placed + (token * HEADS + head) * (2 * HALF) + half
            tl.store(target, turned)
            tl.store(target + HALF, lower)
        else:
            _keep(keys, key_scale, turned, lower, HALF, INT8, MOST)


@triton.jit
def _keep(target, scales, upper, lower, HALF: tl.constexpr, INT8: tl.constexpr, MOST: tl.constexpr):
    """Store a vector's halves in a cache, as `realsr_r1.models.lumina.caches.as_int8` rounds them."""
    half = tl.arange(0, HALF)
    if INT8:
        upper, lower = upper.to(tl.float32), lower.to(tl.float32)
        total = tl.sum(upper, 0) + tl.sum(lower, 0)  # a NaN or an infinity anywhere is one here
        largest = tl.maximum(tl.max(tl.abs(upper), 0), tl.max(tl.abs(lower), 0))
        scale = tl.where(total - total == 0, tl.div_rn(largest, MOST * 1.0), float("nan"))
        tl.store(scales, scale)
        divisor = tl.where(scale > 0, scale, 1.0)
        upper = tl.minimum(tl.maximum(tl.floor(tl.div_rn(upper, divisor) + 0.5), -MOST), MOST).to(tl.int8)
        lower = tl.minimum(tl.maximum(tl.floor(tl.div_rn(lower, divisor) + 0.5), -MOST), MOST).to(tl.int8)
    tl.store(target + half, upper)
    tl.store(target + HALF + half, lower)


@triton.jit(do_not_specialize=["rows", "n", "largest", "longest", "own_length", "branch_length",
                               "prompt_pieces", "own_pieces", "branch_pieces", "shared_blocks",
                               "own_blocks", "of_prompts", "of_own", "pieces"])
def _attend(query, prompt_keys, prompt_values, own_keys, own_values, branch_keys, branch_values,
            prompt_key_scales, prompt_value_scales, own_key_scales, own_value_scales, branch_key_scales,
            branch_value_scales, prompt_lengths, row_of_place, columns, parts, peaks, sums,
            rows, n, largest, longest, own_length, branch_length,
            prompt_pieces, own_pieces, branch_pieces, shared_blocks, own_blocks, of_prompts, of_own, pieces,
            KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
            TILE: tl.constexpr, PIECE: tl.constexpr, INT8: tl.constexpr):
    """Program (piece of a cache and queries that read it, kv head): a softmax over the piece.

    Its weighted sum of values goes to `parts`, the largest score to `peaks`, and the sum of the
    exponentials below it to `sums`.
    """
    program, head = tl.program_id(0), tl.program_id(1)
    index = tl.arange(0, QUERIES).to(tl.int64)
    if program < of_prompts:
        piece, block = program % prompt_pieces, program // prompt_pieces % shared_blocks
        prompt = program // prompt_pieces // shared_blocks
        number = block * QUERIES + index
        place = number // (n * GROUP)
        sharing = tl.load(row_of_place + prompt * largest + place, mask=place < largest, other=-1)
        live, token = sharing >= 0, sharing * n + number // GROUP % n
        last = tl.load(prompt_lengths + prompt) - 1 + 0 * index
        cache = (prompt * KV_HEADS + head).to(tl.int64) * longest
        keys, values, part = prompt_keys + cache * HEAD_DIM, prompt_values + cache * HEAD_DIM, piece
        key_scales, value_scales = prompt_key_scales + cache, prompt_value_scales + cache
    else:
        own = program - of_prompts
        if own < of_own:
            piece, block = own % own_pieces, own // own_pieces % own_blocks
            row = own // own_pieces // own_blocks
            cache = (row * KV_HEADS + head).to(tl.int64) * own_length
            keys, values = own_keys + cache * HEAD_DIM, own_values + cache * HEAD_DIM
            key_scales, value_scales = own_key_scales + cache, own_value_scales + cache
            part, first = prompt_pieces + piece, row * n
        else:
            own -= of_own
            piece, block = own % branch_pieces, own // branch_pieces % own_blocks
            row = own // branch_pieces // own_blocks
            cache = (row * KV_HEADS + head).to(tl.int64) * branch_length
            keys, values = branch_keys + cache * HEAD_DIM, branch_values + cache * HEAD_DIM
            key_scales, value_scales = branch_key_scales + cache, branch_value_scales + cache
            part, first = piece, (rows + row) * n
        number = block * QUERIES + index
        live, token = number < n * GROUP, first + number // GROUP
        last = tl.load(columns + token, mask=live, other=-1)
    query_head = token * (KV_HEADS * GROUP) + head * GROUP + number % GROUP
    dims = tl.arange(0, HEAD_DIM)
    asking = tl.load(query + query_head[:, None] * HEAD_DIM + dims[None, :], mask=live[:, None], other=0.0)

    peak = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    summed = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    begin = piece * PIECE
    end = tl.minimum(begin + PIECE, tl.max(tl.where(live, last, -1), 0).to(tl.int32) + 1)
    for start in range(begin, end, TILE):
        column = start + tl.arange(0, TILE)
        cells = column[:, None] * HEAD_DIM + dims[None, :]
        seen = tl.load(keys + cells, mask=column[:, None] < end, other=0).to(asking.dtype)
        scores = tl.dot(asking, tl.trans(seen), input_precision="ieee")
        if INT8:
            scores *= tl.load(key_scales + column, mask=column < end, other=0.0)[None, :]
        visible = (column[None, :] < end) & (column[None, :] <= last[:, None])
        scores = tl.where(visible, scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        floor = tl.where(higher == -float("inf"), 0.0, higher)
        weights, fading = tl.exp(scores - floor[:, None]), tl.exp(peak - floor)
        seen = tl.load(values + cells, mask=column[:, None] < end, other=0).to(asking.dtype)
        total = total * fading + tl.sum(weights, 1)
        if INT8:
            weights *= tl.load(value_scales + column, mask=column < end, other=0.0)[None, :]
        summed = summed * fading[:, None] + tl.dot(weights.to(seen.dtype), seen, input_precision="ieee")
        peak = higher
    target = query_head * pieces + part
    tl.store(peaks + target, peak, mask=live)
    tl.store(sums + target, total, mask=live)
    # A part without a visible column isn't read.
    tl.store(parts + target[:, None] * HEAD_DIM + dims[None, :], summed,
             mask=(live & (peak > -float("inf")))[:, None])


@triton.jit(do_not_specialize=["own_tokens", "own_parts", "branch_parts", "pieces"])
def _merge(parts, peaks, sums, attended, own_tokens, own_parts, branch_parts, pieces,
           HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, MOST: tl.constexpr):
    """Program (token, head): join the softmaxes over pieces."""
    token, head = tl.program_id(0), tl.program_id(1)
    query_head = token.to(tl.int64) * HEADS + head
    number, dims = tl.arange(0, MOST), tl.arange(0, HEAD_DIM)
    count = tl.where(token < own_tokens, own_parts, branch_parts)
    peak = tl.load(peaks + query_head * pieces + number, mask=number < count, other=-float("inf"))
    weights = tl.exp(peak - tl.max(peak, 0))
    used = peak > -float("inf")
    total = tl.sum(weights * tl.load(sums + query_head * pieces + number, mask=used, other=0.0), 0)
    part = tl.load(parts + (query_head * pieces + number)[:, None] * HEAD_DIM + dims[None, :],
                   mask=used[:, None], other=0.0)
    tl.store(attended + query_head * HEAD_DIM + dims, tl.sum(part * weights[:, None], 0) / total)
