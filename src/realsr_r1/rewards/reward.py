"""What a reward is: a name, what it reads of a chain, the columns it needs, and how its function is
made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError

RewardFunc = Callable[..., list["float | None"]]  # f(completions, **columns), TRL's signature


@dataclass(frozen=True)
class RewardSettings:
    """What rewards are made for: `chain`, what completions are;

    `experts` (names) and `device`, of the generation reward.
    """

    chain: ChainSpec
    experts: tuple[str, ...]
    device: str = "cpu"


@dataclass(frozen=True)
class Reward:
    """A reward by name.

    `section`: what the sections that it judges are about (one of `spec.ABOUT`), or None where it
    judges the whole chain. `columns`: settings -> the columns of the dataset that it can't do
    without. `build`: settings -> its function.
    """

    name: str
    section: str | None
    columns: Callable[[RewardSettings], tuple[str, ...]]
    build: Callable[[RewardSettings], RewardFunc]

    def require_section(self, chain: ChainSpec) -> None:
        """Raise `UserError` where no section of the chain is what this reward reads."""
        if self.section is not None and not chain.about(self.section):
            raise UserError(f"the {self.name} reward reads a section about {self.section}, and this model's "
                            f"chain has none (its sections are {', '.join(chain.names())}); leave it out of "
                            "--reward_funcs")


def bound(function: RewardFunc, **arguments: Any) -> RewardFunc:
    """`function` with these arguments, under its own name (TRL logs a reward under that)."""
    return functools.update_wrapper(functools.partial(function, **arguments), function)
