"""Rewards by name: those of this package or your own, and the columns that each needs.

Your own reward is named `package.module:function`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.core.import_named import import_named
from realsr_r1.rewards.degradation import DEGRADATION
from realsr_r1.rewards.experts import expert_needs_hq, parse_expert
from realsr_r1.rewards.fidelity import FIDELITY
from realsr_r1.rewards.format import FORMAT
from realsr_r1.rewards.generation import EXPERT_OPTIONS, GENERATION, GenerationReward
from realsr_r1.rewards.progress import PROGRESS
from realsr_r1.rewards.reward import Reward, RewardFunc
from realsr_r1.rewards.settings import RewardSettings
from realsr_r1.rewards.understanding import UNDERSTANDING

REWARDS = (FORMAT, DEGRADATION, UNDERSTANDING, GENERATION, FIDELITY, PROGRESS)

# The arguments that the trainer passes to every reward besides the dataset's columns.
TRAINER_ARGUMENTS = {"prompts", "completions", "completion_ids", "images", "lq", "trainer_state",
                     "log_extra", "log_metric", "environments"}


def load_reward_funcs(names: Sequence[str], settings: RewardSettings | None = None,
                      **changes: Any) -> list[RewardFunc]:
    """Return reward functions with TRL's signature, in the order of `names`.

    `names`: format, degradation, understanding, generation, fidelity, progress (with or without
    `_reward`), or `package.module:function`. `settings`: what they are made with; `changes` are
    fields of it, with other values (`experts=["ssim"]`). Raises `UserError` for an unknown reward
    or expert, with a list of the known ones, for a reward that judges a section that the chain
    lacks, for an option that no reward of `names` reads, and for an expert that can't be loaded.
    """
    settings = _changed(settings, changes)
    functions = [reward.build(settings) for reward in _rewards(names, settings)]
    called = [getattr(function, "__name__", type(function).__name__) for function in functions]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two of the rewards {', '.join(names)} are functions called {twice}, and logs are "
                        "kept by that name; leave one out, or give its function another __name__")
    return functions


def load_monitors(names: Sequence[str], settings: RewardSettings) -> dict[str, RewardFunc]:
    """Return a function with TRL's signature for each held-out expert: its name -> function.

    Each is a generation reward with this expert alone. Raises `UserError` for an expert that
    can't be loaded, and for one that a reward of `names` reads.
    """
    trained = {parse_expert(text).name: reward.name for reward in _rewards(names, settings)
               for text in reward.experts(settings)}
    monitors: dict[str, RewardFunc] = {}
    for text in settings.monitor_experts or ():
        name = parse_expert(text).name
        if name in trained:
            raise UserError(f"--monitor_experts {text}: the {trained[name]} reward trains on {name}, and a "
                            "held-out expert must be another")
        monitors[name] = GenerationReward([text], settings.place, settings.chain, settings.expert_weights)
    return monitors


def required_columns(names: Sequence[str], settings: RewardSettings | None = None,
                     **changes: Any) -> dict[str, tuple[str, ...]]:
    """Return the dataset's columns that each of `names` needs: name -> columns. Loads no expert.

    A function of your own needs the arguments that have no default and that the trainer doesn't
    pass. Held-out experts that need the HQ image are there, too. Raises `UserError` as
    `load_reward_funcs` does.
    """
    settings = _changed(settings, changes)
    columns = {name: reward.columns(settings)
               for name, reward in zip(names, _rewards(names, settings), strict=True)}
    return {**columns, **{f"monitor {name}": ("hq",) for name in settings.monitor_experts or ()
                          if expert_needs_hq(name)}}


def judged_sections(names: Sequence[str], chain: ChainSpec) -> list[tuple[str, ...] | None]:
    """Return the names of the sections that each reward judges; None where it judges a whole chain.

    That's so for a function of your own. Raises `UserError` as `load_reward_funcs` does.
    """
    return [reward.judged(chain) for reward in _rewards(names, RewardSettings(chain))]


def _changed(settings: RewardSettings | None, changes: Mapping[str, Any]) -> RewardSettings:
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(settings or RewardSettings(), **given)


def _rewards(names: Sequence[str], settings: RewardSettings) -> list[Reward]:
    """Look up all rewards before the first is made, since an expert may have to be downloaded."""
    found = [_reward(name) for name in names]
    for reward in found:
        reward.require_section(settings.chain)
    read = {option for reward in found for option in reward.options}
    read.update(EXPERT_OPTIONS if settings.monitor_experts else ())
    for reward in REWARDS:
        for option in reward.options:
            if option not in read and getattr(settings, option) != getattr(RewardSettings, option):
                raise UserError(f"--{option} has no effect: it is for the {reward.name} reward, which is not "
                                f"among the rewards {', '.join(names)}")
    return found


def _reward(name: str) -> Reward:
    known = {reward.name: reward for reward in REWARDS}
    if name.removesuffix("_reward") in known:
        return known[name.removesuffix("_reward")]
    function = import_named(name, "reward", tuple(known))
    return Reward(name, None, lambda settings: _needed_arguments(function), lambda settings: function)


def _needed_arguments(function: RewardFunc) -> tuple[str, ...]:
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, argument in inspect.signature(function).parameters.items()
                 if argument.kind in plain and argument.default is argument.empty
                 and name not in TRAINER_ARGUMENTS)
