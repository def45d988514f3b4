"""Rewards by name, with the dataset columns each needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.rewards import degradation_reward, format_reward, load_reward_funcs, understanding_reward
from realsr_r1.rewards.registry import REWARDS, required_columns

OWN = """
def length_reward(completions, images, caption, weight=1.0, **columns):
    return [len(text) * weight for text in completions]
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_rewards", None)


def test_the_four_load_by_name_with_or_without_the_suffix(chain, photos):
    names = ["format", "generation_reward", "degradation_reward", "understanding"]
    funcs = load_reward_funcs(names, experts=["piqe"])
    assert [funcs[place].func for place in (0, 2, 3)] == [format_reward, degradation_reward,
                                                          understanding_reward]
    assert [func.__name__ for func in funcs] == ["format_reward", "generation_reward", "degradation_reward",
                                                 "understanding_reward"]
    assert 0 < funcs[1]([chain()], images=[photos[:3]])[0] < 1


def test_ones_own_function_loads_by_module_and_name(own_module):
    (func,) = load_reward_funcs(["own_rewards:length_reward"])
    assert func(["abc"], images=None, caption=None) == [3.0]


@pytest.mark.parametrize("name", ["beauty", "", "Format", "own_rewards.length_reward"])
def test_an_unknown_reward_is_refused_with_the_list_of_known_ones(name):
    for load in (load_reward_funcs, required_columns):
        with pytest.raises(UserError) as caught:
            load(["format", name])
        assert all(known in str(caught.value) for known in (*(reward.name for reward in REWARDS), repr(name)))


@pytest.mark.parametrize("name, message", [("no_such_module:f", "no module"),
                                           ("own_rewards:absent", "no function")])
def test_ones_own_function_that_is_not_there_is_refused(own_module, name, message):
    with pytest.raises(UserError, match=message):
        load_reward_funcs([name])


def test_an_unknown_expert_is_refused():
    for load in (load_reward_funcs, required_columns):
        with pytest.raises(UserError, match="nimma.*nima.*topiq_nr"):
            load(["generation"], experts=["nimma"])


def test_rewards_name_the_columns_they_need(own_module):
    names = ["format", "degradation", "understanding_reward", "generation"]
    expected = {"format": (), "degradation": ("degradation",), "understanding_reward": ("tag",),
                "generation": ()}
    assert required_columns(names) == expected
    # SSIM only where there is an HQ image
    assert required_columns(names, experts=["piqe", "ssim"]) == expected
    assert required_columns(names, experts=["ssim"]) == {**expected, "generation": ("hq",)}
    assert required_columns(["own_rewards:length_reward"]) == {"own_rewards:length_reward": ("caption",)}


def test_importing_the_rewards_loads_nothing_heavy():
    code = ("import sys, realsr_r1.rewards, realsr_r1.rewards.registry; "
            "sys.exit(any(name in sys.modules for name in ('torch', 'pyiqa', 'numpy', 'datasets')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
