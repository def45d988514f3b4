"""What a rollout is watched by, as pure functions: spread and agreement of rewards, sections, images.

Knows numbers only, as `objective` does. The trainer logs what is computed here at every step, and
`--stop_if` (`guards`) may end a run by it. `docs/algorithm.md` says what to look out for.

Letters in shapes: N completions of a rollout over all processes, G completions of a group, K
rewards, S sections of a chain, B completions of a microbatch, T tokens of the longest completion.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch


def reward_statistics(rewards: torch.Tensor, weights: torch.Tensor, num_generations: int,
                      names: Sequence[str]) -> dict[str, float]:
    """How rewards differ within groups, and whether they rise and fall together: log name -> value.

        spread/NAME        mean over groups of the standard deviation (G - 1 in its denominator)
        no_spread/NAME     share of the groups in which all scores are equal
        correlation/A-B    Pearson's, of what A and B are above their groups' means; over all
                           completions that both have scored; 0 where one of them has no spread

    `spread/total` is that of the weighted sum. Only groups with two scores or more count; NaN where
    there are none.

    Args:
        rewards: (N, K), neighbours are a group, NaN where a completion has no score.
        weights: (K,).
        num_generations: G; N is a multiple of it.
        names: of the K rewards.
    """
    total = (rewards * weights).nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)
    columns = torch.cat([rewards, total[:, None]], 1).double()
    groups = columns.view(-1, num_generations, columns.shape[1])
    centred, std, is_flat = _within_groups(groups)
    spread, flat = std.nanmean(0).tolist(), is_flat.nanmean(0).tolist()
    numbers = {f"spread/{name}": value for name, value in zip((*names, "total"), spread, strict=True)}
    numbers |= {f"no_spread/{name}": value for name, value in zip(names, flat, strict=False)}
    above = centred.flatten(0, 1)
    for (first, one), (second, other) in itertools.combinations(enumerate(names), 2):
        numbers[f"correlation/{one}-{other}"] = _correlation(above[:, first], above[:, second])
    return numbers


def _within_groups(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Groups (groups, G, K) -> scores less their group's mean; their std; 1 where all are equal, else 0.

    The last two are (groups, K), NaN where a group has fewer than two scores.
    """
    is_scored = ~groups.isnan()
    count = is_scored.sum(1)
    highest = groups.where(is_scored, -math.inf).amax(1)
    lowest = groups.where(is_scored, math.inf).amin(1)
    is_flat = highest <= lowest  # exactly: a mean of equal numbers may be off by a rounding
    centred = (groups - groups.nanmean(1, keepdim=True)).masked_fill(is_flat[:, None] & is_scored, 0.0)
    std = ((centred ** 2).nansum(1) / (count - 1).clamp(min=1)).sqrt()
    too_few = count < 2
    return (centred, std.masked_fill(too_few, torch.nan),
            is_flat.double().masked_fill(too_few, torch.nan))


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    both = ~(one.isnan() | other.isnan())
    one, other = one[both], other[both]
    size = float(((one ** 2).sum() * (other ** 2).sum()).sqrt())
    return float((one * other).sum()) / size if size else 0.0


def section_lengths(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens that each completion has in each section, its tags included, (B, S).

    `numbers` (B, T): the number of each token's section, S for a token in none. `count`: S. NaN
    where a completion has not written the section.
    """
    lengths = torch.stack([(numbers == section).sum(1) for section in range(count)], 1).float()
    return lengths.masked_fill(lengths == 0, torch.nan)


def section_sums(values: torch.Tensor, weights: torch.Tensor, numbers: torch.Tensor,
                 count: int) -> torch.Tensor:
    """Sums of `weights` * `values`, and of `weights`, over the tokens of each section, (2, S).

    The first over the second is a section's mean. `values`, `weights` and `numbers` are (B, T), the
    last as in `section_lengths`.
    """
    sections = torch.arange(count, device=numbers.device)
    here = (numbers == sections[:, None, None]) * weights
    return torch.stack([(here * values).sum((1, 2)), here.sum((1, 2))])


def repeated_rows(codes: Sequence[Sequence[int]]) -> float:
    """Share of an image's rows of codes that were there before, of those that can be.

    0 where all rows differ, 1 where they are all the same, as in an image of one grey. NaN for an
    image of one row. `codes`: h rows of w.
    """
    if len(codes) < 2:
        return math.nan
    return (len(codes) - len({tuple(row) for row in codes})) / (len(codes) - 1)
