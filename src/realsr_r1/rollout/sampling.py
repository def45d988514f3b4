"""Drawing tokens: random numbers as a function of their place, top-k with ties kept, inverse-CDF draws.

Everything works on a batch of rows as tensors. Knows scores and counters; no grammar, no policy.
"""

from __future__ import annotations

import torch

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

ENTROPY_MAX, ENTROPY_MIDDLE = 10.0, 5.0  # nats; FACTS section 5


def uniforms(seed: int, step: int, rows: torch.Tensor, positions: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), (len(rows), positions) float64, each a hash of (seed, step, row, position).

    `rows` (R,) int64: rows of the whole batch. Integer arithmetic only, so every device gives the same numbers.
    """
    key = torch.zeros((), dtype=torch.int64, device=rows.device)
    for counter in (torch.full_like(key, _signed(seed)), torch.full_like(key, _signed(step)), rows[:, None],
                    torch.arange(positions, device=rows.device)[None, :]):
        key = _mix(key + (counter + 1) * _GAMMA)
    return _shift(key, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _mix(key: torch.Tensor) -> torch.Tensor:
    key = (key ^ _shift(key, 30)) * _MIX_1
    key = (key ^ _shift(key, 27)) * _MIX_2
    return key ^ _shift(key, 31)


def _shift(key: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift (torch's keeps the sign)."""
    return (key >> bits) & (2**(64 - bits) - 1)


def entropy_top_k(scores: torch.Tensor, k_min: int, k_max: int) -> torch.Tensor:
    """How many of a row's likeliest choices may be drawn, (R,) int64, from the entropy of `scores` (R, C), all finite.

    k_min + (k_max - k_min) * sigmoid(H - 5), H in nats within [0, 10], at least 1 and at most C.
    """
    log_probabilities = torch.log_softmax(scores, dim=-1)
    entropy = (-log_probabilities.exp() * log_probabilities).sum(-1).clamp(0.0, ENTROPY_MAX)
    k = torch.round(k_min + (k_max - k_min) * torch.sigmoid(entropy - ENTROPY_MIDDLE))
    return k.long().clamp(1, scores.shape[-1])


def draw(scores: torch.Tensor, k: int | torch.Tensor, temperature: float, uniform: torch.Tensor,
         k_max: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one choice a row: top-k with ties kept, then temperature, then the inverse CDF at `uniform`.

    `scores` (R, C), -inf where a choice is not allowed, in the order of the CDF; `k` one number, or (R,) int64 and
    then at most `k_max` (C by default); `uniform` (R,) float64. Returns the choices (R,) int64 and the log-probability
    each was drawn with (R,) float64 (NaN where the scores are).
    """
    k_max = k if isinstance(k, int) else k_max or scores.shape[-1]
    ranked = scores.topk(min(k_max, scores.shape[-1])).values
    smallest = ranked[:, -1:] if isinstance(k, int) else ranked.gather(1, k[:, None] - 1)
    weights = ((scores - ranked[:, :1]) / temperature).exp_().masked_fill_(scores < smallest, 0.0).double()
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    choice.clamp_(max=scores.shape[-1] - 1)  # NaN scores would give an index past the end
    return choice[:, 0], (weights.gather(1, choice) / total).log_()[:, 0]
