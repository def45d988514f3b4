"""What a reward is: a name, the section it judges, the columns it needs, and its function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.rewards.settings import RewardSettings

RewardFunc = Callable[..., list["float | None"]]  # f(completions, **columns), TRL's signature


@dataclass(frozen=True)
class Reward:
    """A reward by name.

    `section`: the subject of the sections that it judges (one of `spec.ABOUT`), or None where it
    judges the whole chain. `columns`: settings -> the dataset's columns that it can't do without.
    `build`: settings -> its function. `options`: the settings that it reads and that some others
    don't; where no reward of a run reads one of them, it is refused.
    `experts`: settings -> the experts whose scores it is made of.
    """

    name: str
    section: str | None
    columns: Callable[[RewardSettings], tuple[str, ...]]
    build: Callable[[RewardSettings], RewardFunc]
    options: tuple[str, ...] = ()
    experts: Callable[[RewardSettings], Sequence[str]] = lambda settings: ()

    def judged(self, chain: ChainSpec) -> tuple[str, ...] | None:
        """The names of the chain's sections that this reward judges, or None for the whole chain.

        They are the first text about its subject, which is the one that it reads, or all images.
        """
        if self.section is None:
            return None
        sections = chain.about(self.section)
        return tuple(section.name for section in (sections if sections[0].is_image else sections[:1]))

    def require_section(self, chain: ChainSpec) -> None:
        """Raise `UserError` where the chain has no section that this reward judges."""
        if self.section is not None and not chain.about(self.section):
            raise UserError(f"the {self.name} reward reads a section about {self.section}, and this model's "
                            f"chain has none (its sections are {', '.join(chain.names())}); leave it out of "
                            "--reward_funcs")


def bound(function: RewardFunc, **arguments: Any) -> RewardFunc:
    """Return `function` with these arguments set, under its own name, by which TRL logs it."""
    return functools.update_wrapper(functools.partial(function, **arguments), function)
