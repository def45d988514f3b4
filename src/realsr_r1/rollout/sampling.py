"""How tokens are drawn: the `Sampler` of a rollout, and the functions it is made of.

A new rule for drawing changes the `Sampler` alone. The functions give random numbers that depend
only on their place, top-k that keeps ties, inverse-CDF draws, and the rule by which drafts are kept
or drawn again. Everything works on a batch of rows as tensors. Knows scores and counters; no
grammar, no policy.
"""

from __future__ import annotations

import torch

from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.guidance import guide

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), as
# signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

BELOW_ONE = 1 - 2.0**-52  # a float64 total multiplied with this is always less than the total
ENTROPY_MAX, ENTROPY_MIDDLE = 10.0, 5.0  # nats; the published code's


class Sampler:
    """Makes every draw of a rollout: random numbers, and rules for text, image codes and drafts.

    `rows` (R,) int64: the numbers of the rollout's rows in the whole batch. What a row draws
    depends only on (seed, step, row, position), and for drafts on their place in the window; it
    never depends on its neighbours. Where the methods below take `rows`, these are indices into
    this `rows`.
    """

    def __init__(self, config: RolloutConfig, step: int, rows: torch.Tensor):
        self.config = config
        self.is_guided = config.guidance_scale != 1.0
        self._uniforms = uniforms(config.seed, step, rows, config.max_new_tokens)
        # The random numbers for the drafts of a position: one for its update at each place in the
        # window, and the last one for its first draft.
        self._draft_uniforms = None
        if config.jacobi > 1:
            positions = config.max_new_tokens + config.jacobi
            self._draft_uniforms = uniforms(config.seed, step, rows, positions, draws=config.jacobi + 1)

    def numbers(self, rows: torch.Tensor, positions: torch.Tensor | int) -> torch.Tensor:
        """Return the uniform random numbers of `rows` (n,) at their `positions`, (n,) float64."""
        return self._uniforms[rows, positions]

    def draw_text(self, scores: torch.Tensor, uniform: torch.Tensor,
                  by_entropy: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw text and sizes: fixed top-k, then temperature.

        `scores` (n, V), -inf where a token is not allowed. `by_entropy` (n,) bool: the rows whose
        top-k is that of image codes; by default none. See `draw` for the rest.
        """
        config = self.config
        if by_entropy is None:
            return draw(scores, config.text_top_k, config.temperature, uniform)
        k = entropy_top_k(scores, config.image_top_k_min, config.image_top_k_max)
        k = k.where(by_entropy, min(config.text_top_k, scores.shape[-1]))
        return draw(scores, k, config.temperature, uniform, max(config.text_top_k, config.image_top_k_max))

    def draw_codes(self, scores: torch.Tensor, unconditional: torch.Tensor | None,
                   uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw image codes, as numbers of codes: guidance, top-k by entropy, then temperature.

        `scores` (n, C); `uniform` (n,); see `draw` for the rest.
        """
        scores, k = self._guided(scores, unconditional)
        return draw(scores, k, self.config.temperature, uniform, self.config.image_top_k_max)

    def _guided(self, scores: torch.Tensor,
                unconditional: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores after guidance, and the top-k of each row, (n,)."""
        if unconditional is not None:
            scores = guide(scores, unconditional, self.config.guidance_scale)
        return scores, entropy_top_k(scores, self.config.image_top_k_min, self.config.image_top_k_max)

    def first_drafts(self, codes: int) -> torch.Tensor:
        """Draw a first draft for each place of every row's window, (R, jacobi) int64.

        All numbers below `codes` are equally likely.
        """
        return (self._draft_uniforms[:, :self.config.jacobi, -1] * codes).long()

    def draw_drafts(self, drawn_from: torch.Tensor, rows: torch.Tensor,
                    positions: torch.Tensor) -> torch.Tensor:
        """Draw drafts for the windows of `rows` from their `positions` (n,) on, (n, jacobi).

        `rows` (n,). `drawn_from` (n, C): the distributions.
        """
        places = torch.arange(self.config.jacobi, device=rows.device)
        uniform = self._draft_uniforms[rows[:, None], positions[:, None] + places, -1]
        return invert(drawn_from.cumsum(-1), uniform.clamp(max=BELOW_ONE))

    def update_drafts(self, drafts: torch.Tensor, drawn_from: torch.Tensor, scores: torch.Tensor,
                      unconditional: torch.Tensor | None, rows: torch.Tensor,
                      positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn drafts (n, m) into draws as `draw_codes` makes them, changing as few as possible.

        See `couple`. `drawn_from` (n, m, C): the distributions of the drafts. `scores` (n * m, C).
        `positions` (n,): of the first drafts of `rows` (n,). Returns the codes, the distributions
        they are draws from now, and their log-probabilities, (n, m).
        """
        scores, k = self._guided(scores, unconditional)
        target = weights(scores, k, self.config.temperature, self.config.image_top_k_max)
        target /= target.sum(-1, keepdim=True)
        places = torch.arange(drafts.shape[1], device=rows.device)
        uniform = self._draft_uniforms[rows[:, None], positions[:, None] + places, places]
        codes = couple(drafts.flatten(), drawn_from.flatten(0, 1), target, uniform.flatten())
        log_q = target.gather(1, codes[:, None]).log_()
        return codes.view_as(drafts), target.view_as(drawn_from), log_q.view_as(drafts)


def uniforms(seed: int, step: int, rows: torch.Tensor, positions: int,
             draws: int | None = None) -> torch.Tensor:
    """Return uniform numbers in [0, 1), (len(rows), positions) float64.

    Each is a hash of (seed, step, row, position). `rows` (R,) int64: numbers of rows in the whole
    batch. With `draws` the result is (len(rows), positions, draws): that many numbers for each
    position, all different from the one without `draws`. The arithmetic is on integers only, so
    every device gives the same numbers.
    """
    key = torch.zeros((), dtype=torch.int64, device=rows.device)
    for counter in (torch.full_like(key, _signed(seed)), torch.full_like(key, _signed(step)), rows[:, None],
                    torch.arange(positions, device=rows.device)[None, :]):
        key = _mix(key + (counter + 1) * _GAMMA)
    if draws is not None:
        key = _mix(key[..., None] + (torch.arange(draws, device=rows.device) + 1) * _GAMMA)
    return _shift(key, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _mix(key: torch.Tensor) -> torch.Tensor:
    key = (key ^ _shift(key, 30)) * _MIX_1
    key = (key ^ _shift(key, 27)) * _MIX_2
    return key ^ _shift(key, 31)


def _shift(key: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without the sign (torch's own shift keeps the sign)."""
    return (key >> bits) & (2**(64 - bits) - 1)


def entropy_top_k(scores: torch.Tensor, k_min: int, k_max: int) -> torch.Tensor:
    """Return how many of a row's likeliest choices may be drawn, (R,) int64.

    It is k_min + (k_max - k_min) * sigmoid(H - 5), at least 1 and at most C. H is the entropy of
    `scores` (R, C) in nats, clamped to [0, 10]; a score may be -inf, which is no choice.
    """
    entropy = torch.special.entr(torch.softmax(scores, dim=-1)).sum(-1).clamp(0.0, ENTROPY_MAX)
    k = torch.round(k_min + (k_max - k_min) * torch.sigmoid(entropy - ENTROPY_MIDDLE))
    return k.long().clamp(1, scores.shape[-1])


def draw(scores: torch.Tensor, k: int | torch.Tensor, temperature: float, uniform: torch.Tensor,
         k_max: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from every row: top-k with ties kept, then temperature, then the inverse CDF.

    `scores`, `k` and `k_max`: see `weights`. `uniform`: where the inverse CDF is taken, (R,) or,
    for several draws a row, (R, m), float64. Returns the choices, int64, and the log-probabilities
    they were drawn with, float64 (NaN where the scores are), both shaped as `uniform`.
    """
    kept = weights(scores, k, temperature, k_max)
    cumulative = kept.cumsum(-1)
    total = cumulative[:, -1:]
    choice = invert(cumulative, uniform.reshape(len(scores), -1))
    log_q = (kept.gather(1, choice) / total).log_()
    return choice.view(uniform.shape), log_q.view(uniform.shape)


def weights(scores: torch.Tensor, k: int | torch.Tensor, temperature: float,
            k_max: int | None = None) -> torch.Tensor:
    """Return what choices are drawn in proportion to, (R, C) float64: top-k, then temperature.

    Top-k keeps all choices that tie with the last one. `scores` (R, C), -inf where a choice is not
    allowed. `k`: one number, or (R,) int64 of at most `k_max` (C by default).
    """
    k_max = k if isinstance(k, int) else k_max or scores.shape[-1]
    ranked = scores.topk(min(k_max, scores.shape[-1])).values
    smallest = ranked[:, -1:] if isinstance(k, int) else ranked.gather(1, k[:, None] - 1)
    return ((scores - ranked[:, :1]) / temperature).exp_().masked_fill_(scores < smallest, 0.0).double()


def invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the choices at `uniform` (R, m), as (R, m) int64.

    `cumulative` (R, C): cumulative sums of weights, whose last is their total.
    """
    choice = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return choice.clamp_(max=cumulative.shape[-1] - 1)  # NaN scores would give an index past the end


def couple(drafts: torch.Tensor, drawn_from: torch.Tensor, target: torch.Tensor,
           uniform: torch.Tensor) -> torch.Tensor:
    """Turn drafts from one distribution into draws from another, changing as few as possible.

    A draft stays with probability min(1, target / drawn_from) at its choice. Otherwise it is drawn
    again from the excess of `target` over `drawn_from` (the rule of speculative sampling:
    Leviathan, Kalman and Matias, arXiv 2211.17192). `drafts` (R,) int64; `drawn_from`, `target`
    (R, C) float64, rows of sum 1; `uniform` (R,) float64, independent of the drafts. Returns the
    draws, (R,) int64.
    """
    before, now = (table.gather(1, drafts[:, None])[:, 0] for table in (drawn_from, target))
    kept = (now / before).clamp(max=1.0)
    excess = (target - drawn_from).clamp_(min=0.0).cumsum_(-1)
    # Where a draft is replaced, the rest of its random number is uniform again, and independent of
    # the draft.
    left = ((uniform - kept) / (1 - kept)).clamp_(0.0, BELOW_ONE)
    others = invert(excess, left[:, None])[:, 0]
    stays = (uniform < kept) | (excess[:, -1] <= 0)  # without excess the two differ by rounding only
    return torch.where(stays, drafts, others)
