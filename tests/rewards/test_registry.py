"""Rewards by name, with the dataset columns each needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.rewards import degradation_reward, format_reward, load_reward_funcs, understanding_reward
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rewards.registry import REWARDS, load_monitors, required_columns
from realsr_r1.rewards.settings import RewardSettings

from ..conftest import ROOT

OWN = """
def length_reward(completions, images, caption, weight=1.0, **columns):
    return [len(text) * weight for text in completions]


def _factory(factor):
    def made(completions, **columns):
        return [len(text) * factor for text in completions]
    return made


first, second = _factory(1.0), _factory(-1.0)
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


def test_two_rewards_of_one_name_are_refused(own_module):
    for names in (["format", "format"], ["own_rewards:first", "own_rewards:second"]):
        with pytest.raises(UserError, match="are functions called (format_reward|made), and logs are kept by"):
            load_reward_funcs(names)
    assert len(load_reward_funcs(["own_rewards:first", "own_rewards:length_reward"])) == 2


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


def test_the_settings_reach_the_rewards(chain, photos, tmp_path):
    (tmp_path / "synonyms.yaml").write_text("animal: [cat]")
    settings = RewardSettings(
        experts=["ssim:2", "piqe"], tag_precision=True, tag_vocabulary=["animal", "window", "car"],
        tag_synonyms=str(tmp_path / "synonyms.yaml"), neighbour_credit=0.5, target_px=48)
    names = ["degradation", "understanding", "generation", "fidelity", "progress"]
    columns = {"images": [photos[:3]], "hq": [photos[2]], "lq": [photos[2]], "tag": [["animal", "dog"]],
               "degradation": [["light blur", "downsample", "heavy noise", "light compression", "upsample"]]}
    found = [func([chain()], **columns)[0] for func in load_reward_funcs(names, settings)]
    piqe = create_experts(["piqe"])[0]
    assert found[0] == pytest.approx(0.9)  # one of five is a level beside
    assert found[1] == pytest.approx(2 / (2 + 1 + 1))  # a cat is an animal; the window is not there
    assert found[2] == pytest.approx((2 * 1 + score_images(piqe, [photos[2]])[0]) / 3)
    assert found[3] == 1.0
    assert 0 <= found[4] <= 1


@pytest.mark.parametrize("changes, flag", [
    ({"tag_precision": True}, "--tag_precision"), ({"tag_synonyms": "file"}, "--tag_synonyms"),
    ({"neighbour_credit": 0.5}, "--neighbour_credit"), ({"expert_device": "cpu"}, "--expert_device"),
    ({"expert_weights": "folder"}, "--expert_weights")])
def test_an_option_that_no_reward_reads_is_refused(changes, flag):
    with pytest.raises(UserError, match=f"{flag} has no effect"):
        load_reward_funcs(["format", "fidelity"], **changes)


def test_options_out_of_range_and_precision_without_tags_are_refused():
    for credit in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="--neighbour_credit"):
            RewardSettings(neighbour_credit=credit)
    with pytest.raises(UserError, match="--format_rule lazy looks for the sections' tags"):
        RewardSettings(chain=ChainSpec.from_yaml(ROOT / "configs/chain/pure_one_step.yaml"),
                       format_rule="lazy")
    with pytest.raises(UserError, match="--tag_precision needs the tags"):
        load_reward_funcs(["understanding"], tag_precision=True)


def test_held_out_experts_are_scored_alone_and_may_not_be_trained_on(chain, photos):
    settings = RewardSettings(experts=["ssim"], monitor_experts=["gmsd", "piqe"])
    monitors = load_monitors(["generation", "format"], settings)
    assert list(monitors) == ["gmsd", "piqe"]
    assert monitors["gmsd"]([chain()], images=[photos[:3]], hq=[photos[2]]) == [1.0]
    assert required_columns(["format"], settings) == {"format": (), "monitor gmsd": ("hq",)}
    untrained = RewardSettings(experts=["ssim"], monitor_experts=["ssim"])
    assert list(load_monitors(["format"], untrained)) == ["ssim"]
    for names, expert in ((["generation"], "ssim:1:0.2:1"), (["progress"], "ssim"), (["fidelity"], "psnr")):
        with pytest.raises(UserError, match=f"--monitor_experts {expert}: the {names[0]} reward trains on"):
            load_monitors(names, RewardSettings(experts=["ssim"], monitor_experts=[expert]))


def test_a_misspelt_reward_gets_the_near_names():
    with pytest.raises(UserError, match="unknown reward 'fidelty' .did you mean fidelity"):
        load_reward_funcs(["fidelty"])
