"""Rewards by name: the four of the chain, or one's own as `package.module:function`, and the columns each needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from realsr_r1.core.import_named import import_named
from realsr_r1.rewards.degradation import degradation_reward
from realsr_r1.rewards.experts import DEFAULT_EXPERTS, expert_needs_hq
from realsr_r1.rewards.format import format_reward
from realsr_r1.rewards.generation import GenerationReward
from realsr_r1.rewards.understanding import understanding_reward

RewardFunc = Callable[..., list["float | None"]]

TEXT_REWARDS: dict[str, RewardFunc] = {
    "format": format_reward,
    "degradation": degradation_reward,
    "understanding": understanding_reward,
}
GENERATION = "generation"
REWARD_NAMES = (*TEXT_REWARDS, GENERATION)

# Columns of the dataset; generation also needs "hq" where all its experts do, see `required_columns`.
REWARD_COLUMNS: dict[str, tuple[str, ...]] = {
    "format": (), "degradation": ("degradation",), "understanding": ("tag",), GENERATION: ()}

# What the trainer passes to every reward beside the dataset's columns.
TRAINER_ARGUMENTS = {"prompts", "completions", "completion_ids", "images", "trainer_state", "log_extra", "log_metric",
                     "environments"}


def load_reward_funcs(names: Sequence[str], experts: Sequence[str] | None = None, device: str = "cpu"
                      ) -> list[RewardFunc]:
    """Reward functions with TRL's signature, in the order of `names`.

    `names`: format, degradation, understanding, generation (with or without `_reward`), or `package.module:function`.
    `experts`, `device`: of the generation reward; the published code's four by default. Raises `UserError` for an unknown reward
    or expert, with the list of known ones, and for an expert that can't be loaded.
    """
    loaded = [_text_reward_or_own(name) for name in names]  # all names before the first download
    return [GenerationReward(DEFAULT_EXPERTS if experts is None else experts, device) if func is None else func
            for func in loaded]


def required_columns(names: Sequence[str], experts: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The dataset's columns that each of `names` needs, as name -> columns. Loads no expert.

    Raises `UserError` for an unknown name. One's own function needs the arguments that have no
    default and that the trainer doesn't give.
    """
    columns = {}
    for name in names:
        func = _text_reward_or_own(name)
        known = REWARD_COLUMNS.get(_plain(name))
        if func is None:
            needs_hq = [expert_needs_hq(expert) for expert in (DEFAULT_EXPERTS if experts is None else experts)]
            known = (*known, "hq") if all(needs_hq) else known  # else the others score where there is none
        columns[name] = _needed_arguments(func) if known is None else known
    return columns


def _plain(name: str) -> str:
    return name.removesuffix("_reward")


def _text_reward_or_own(name: str) -> RewardFunc | None:
    """The function called `name`; None stands for the generation reward, which is made with its experts."""
    if _plain(name) == GENERATION:
        return None
    return TEXT_REWARDS.get(_plain(name)) or import_named(name, "reward", REWARD_NAMES)


def _needed_arguments(func: Callable[..., Any]) -> tuple[str, ...]:
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, argument in inspect.signature(func).parameters.items()
                 if argument.kind in plain and argument.default is argument.empty and name not in TRAINER_ARGUMENTS)
