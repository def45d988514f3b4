"""Causal attention of a row of short samples in bfloat16 on a CPU, by plain matrix products.

It takes the place of torch's flash kernel. Queries are processed in blocks, and a block sees the
keys up to its last query, so that little is computed of what the mask hides. The probabilities are
kept for the backward pass, 2 bytes for each head and pair of tokens; therefore it is used for
samples of up to `SHORT` tokens only. Scores are rounded to bfloat16, as in transformers' eager
attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

SHORT = 1024  # tokens of a sample, at most
BLOCK = 128  # queries in a block, about; smaller blocks mean more and smaller products
TILE = 16  # a block has a multiple of so many queries, which fills the processors' matrix units


def suits(value: torch.Tensor, longest: int) -> bool:
    """Whether `attend` can be used for these values and samples of up to `longest` tokens."""
    return value.device.type == "cpu" and value.dtype == torch.bfloat16 and longest <= SHORT


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: list[tuple[int, int]],
           scaling: float) -> torch.Tensor:
    """Attend inside the samples of a row; returns (T, heads, head_dim) bfloat16.

    `query` (T, heads, head_dim), `key` and `value` (T, kv heads, head_dim). `runs`: (tokens of a
    sample, number of samples of that length one after the other).
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    return _Attention.apply(query, key, value, runs, scaling)


class _Attention(torch.autograd.Function):
    """softmax(scaling * query key^T + mask) value, for a block of all samples of a run at once.

    Autocast is off, because it would copy scores to float32 for the softmax. Under autocast the
    norms leave queries and keys in float32.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                runs: list[tuple[int, int]], scaling: float) -> torch.Tensor:
        longest = max(length for length, _ in runs)
        future = value.new_full((longest, longest), float("-inf")).triu(1)
        attended, kept = torch.empty_like(value), []
        rows = (_copied(_runs(states, runs), value.dtype) for states in (query, key, value))
        for place, (length, _), *states in zip(_runs(attended, runs), runs, *rows, strict=True):
            queries, keys, values = states
            kept += states if any(ctx.needs_input_grad) else []
            for start, stop in reversed(_blocks(length)):
                scores = torch.baddbmm(future[start:stop, :stop].expand(len(queries), -1, -1),
                                       queries[:, start:stop], keys[:, :stop].mT, alpha=scaling)
                weights = scores.softmax(-1)
                place[:, :, start:stop] = (weights @ values[:, :stop]).unflatten(0, place.shape[:2])
                kept += [weights] if any(ctx.needs_input_grad) else []
        ctx.save_for_backward(*kept)
        ctx.runs, ctx.scaling, ctx.dtypes = runs, scaling, (query.dtype, key.dtype, value.dtype)
        return attended

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        kept = iter(ctx.saved_tensors)
        found = [torch.empty_like(gradient, dtype=dtype) for dtype in ctx.dtypes]
        of_runs = _copied(_runs(gradient, ctx.runs), gradient.dtype)
        places_of_runs = (_runs(states, ctx.runs) for states in found)
        for (length, _), of_attended, *places in zip(ctx.runs, of_runs, *places_of_runs, strict=True):
            (queries, keys, values), blocks = (next(kept) for _ in range(3)), _blocks(length)
            of_queries, of_keys, of_values = torch.empty_like(queries), None, None
            for start, stop in reversed(blocks):  # the first one sees all keys
                weights, of_block = next(kept), of_attended[:, start:stop]
                of_scores = torch._softmax_backward_data(of_block @ values[:, :stop].mT, weights, -1,
                                                         weights.dtype)
                of_queries[:, start:stop] = of_scores @ keys[:, :stop]
                more = of_scores.mT @ queries[:, start:stop], weights.mT @ of_block
                if of_keys is None:
                    of_keys, of_values = (product.float() for product in more)
                else:
                    of_keys[:, :stop] += more[0]
                    of_values[:, :stop] += more[1]
            totals = of_queries, of_keys, of_values
            for place, total, factor in zip(places, totals, (ctx.scaling, ctx.scaling, 1.0), strict=True):
                torch.mul(total.view(place.shape), factor, out=place)
        return *found, None, None


def _blocks(length: int) -> list[tuple[int, int]]:
    """Return where the blocks of a sample's queries begin and end.

    They are as even as whole tiles allow.
    """
    size = -(-length // max(1, round(length / BLOCK)))
    size = -(-size // TILE) * TILE
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _runs(states: torch.Tensor, runs: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Return a view of each run of (T, heads, head_dim), as (samples, heads, length, head_dim)."""
    pieces = states.split([length * count for length, count in runs])
    return [piece.unflatten(0, (count, -1)).transpose(1, 2)
            for piece, (_, count) in zip(pieces, runs, strict=True)]


def _copied(runs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return copies of the runs in this type, as (samples * heads, length, head_dim)."""
    return [run.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1) for run in runs]
