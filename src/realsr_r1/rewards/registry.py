"""Rewards by name: the four of the chain or your own, and the columns that each needs.

Your own reward is named `package.module:function`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.import_named import import_named
from realsr_r1.rewards.degradation import DEGRADATION
from realsr_r1.rewards.experts import DEFAULT_EXPERTS
from realsr_r1.rewards.format import FORMAT
from realsr_r1.rewards.generation import GENERATION
from realsr_r1.rewards.reward import Reward, RewardFunc, RewardSettings
from realsr_r1.rewards.understanding import UNDERSTANDING

REWARDS = (FORMAT, DEGRADATION, UNDERSTANDING, GENERATION)

# The arguments that the trainer passes to every reward besides the dataset's columns.
TRAINER_ARGUMENTS = {"prompts", "completions", "completion_ids", "images", "trainer_state", "log_extra",
                     "log_metric",
                     "environments"}


def load_reward_funcs(names: Sequence[str], experts: Sequence[str] | None = None, device: str = "cpu",
                      chain: ChainSpec | None = None) -> list[RewardFunc]:
    """Return reward functions with TRL's signature, in the order of `names`.

    `names`: format, degradation, understanding, generation (with or without `_reward`), or
    `package.module:function`. `experts`, `device`: for the generation reward; by default the
    published code's four experts. `chain`: the chain of the completions, by default the published
    one. Raises `UserError` for an unknown reward or expert, with a list of the known ones, for a
    reward that judges a section that the chain lacks, and for an expert that can't be loaded.
    """
    settings = _settings(experts, device, chain)
    return [reward.build(settings) for reward in _rewards(names, settings)]


def required_columns(names: Sequence[str], experts: Sequence[str] | None = None,
                     chain: ChainSpec | None = None) -> dict[str, tuple[str, ...]]:
    """Return the dataset's columns that each of `names` needs: name -> columns. Loads no expert.

    A function of your own needs the arguments that have no default and that the trainer doesn't
    pass. Raises `UserError` as `load_reward_funcs` does.
    """
    settings = _settings(experts, "cpu", chain)
    return {name: reward.columns(settings) for name, reward in zip(names, _rewards(names, settings),
                                                                   strict=True)}


def judged_sections(names: Sequence[str], chain: ChainSpec) -> list[tuple[str, ...] | None]:
    """Return the names of the sections that each reward judges; None where it judges a whole chain.

    That's so for a function of your own. Raises `UserError` as `load_reward_funcs` does.
    """
    return [reward.judged(chain) for reward in _rewards(names, _settings((), "cpu", chain))]


def _settings(experts: Sequence[str] | None, device: str, chain: ChainSpec | None) -> RewardSettings:
    return RewardSettings(chain or ChainSpec.published(),
                          tuple(DEFAULT_EXPERTS if experts is None else experts), device)


def _rewards(names: Sequence[str], settings: RewardSettings) -> list[Reward]:
    """Look up all rewards before the first is made, since an expert may have to be downloaded."""
    found = [_reward(name) for name in names]
    for reward in found:
        reward.require_section(settings.chain)
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
