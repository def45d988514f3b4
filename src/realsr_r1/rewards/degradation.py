"""The degradation reward: how many of the five degradations are named right, each in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import parse_chain
from realsr_r1.rewards.reward import Reward, bound

ITEM_COUNT = 5  # blur, resize, noise, compression, second resize
LEVELS = ("light", "medium", "heavy")  # how strong a blur, noise or compression is, in this order


def degradation_reward(completions: Sequence[str],
                       degradation: Sequence[Sequence[str] | str | None] | None = None,
                       spec: ChainSpec | None = None, neighbour_credit: float = 0.0,
                       **columns: Any) -> list[float | None]:
    """Return the share of the five items that are right (0, 0.2 ... 1), for each completion.

    Item i of the answer is compared with item i of the truth. The answer is read from the first
    section of `spec` (by default the published chain) that is about degradation.

    `degradation`: the truth of each completion, five strings or one string with four commas. Case
    and outer white space don't count. A missing item is wrong. An answer with a sixth item or
    without such a section scores 0.0. A record whose truth is not five words or phrases gets None.

    `neighbour_credit`: what an item earns that has the level beside the right one, as "light blur"
    for "medium blur"; by default 0, as published. Resizes have no levels.
    """
    section = (spec or ChainSpec.published()).about("degradation")[0]
    truths = [None] * len(completions) if degradation is None else degradation
    bodies = [parse_chain(text, spec).sections.get(section.name) for text in completions]
    return [_score(body, truth, neighbour_credit) for body, truth in zip(bodies, truths, strict=True)]


def _score(body: str | None, truth: Sequence[str] | str | None, neighbour_credit: float) -> float | None:
    right = _items(truth)
    if len(right) != ITEM_COUNT or not all(right):
        return None
    named = _items(body)
    if len(named) > ITEM_COUNT:
        return 0.0
    return sum(1.0 if a == b else neighbour_credit * _are_neighbours(a, b)
               for a, b in zip(named, right)) / ITEM_COUNT


def _are_neighbours(named: str, right: str) -> bool:
    """Whether two items are of one kind, and their levels stand side by side."""
    (level, *kind), (other, *right_kind) = named.split() or [""], right.split()
    return (kind == right_kind and level in LEVELS and other in LEVELS
            and abs(LEVELS.index(level) - LEVELS.index(other)) == 1)


def _items(value: Sequence[str] | str | None) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return [item.strip().lower() if isinstance(item, str) else "" for item in items]


DEGRADATION = Reward("degradation", "degradation", lambda settings: ("degradation",),
                     lambda settings: bound(degradation_reward, spec=settings.chain,
                                            neighbour_credit=settings.neighbour_credit),
                     ("neighbour_credit",))
