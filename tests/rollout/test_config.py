"""One home for rollout settings: what GRPO, restore and model folders say of rollouts is what
`RolloutConfig` says.
"""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.rollout import RolloutConfig
from realsr_r1.rollout.config import add_rollout_flags
from realsr_r1.training.config import ChainGRPOConfig

# GRPO's names where they are others; seed is TRL's own field.
NAMES = {"temperature": "rollout_temperature", "max_new_tokens": "max_completion_length"}
NOT_IN_GRPO = {"image_sizes", "jacobi", "seed"}


def test_grpos_defaults_and_help_texts_are_the_rollouts():
    grpo = {field.name: field for field in dataclasses.fields(ChainGRPOConfig)}
    for field in dataclasses.fields(RolloutConfig):
        if field.name not in NOT_IN_GRPO:
            theirs = grpo[NAMES.get(field.name, field.name)]
            assert (theirs.default, theirs.metadata) == (field.default, field.metadata), field.name


def test_every_setting_of_a_rollout_reaches_grpos_engine(tmp_path):
    changed = dict(num_generations=4, max_new_tokens=77, temperature=0.5, guidance_scale=2.0, text_top_k=3,
                   image_top_k_min=4, image_top_k_max=9, grammar="chain", max_text_tokens=8,
                   cuda_graphs=True, seed=5)
    args = ChainGRPOConfig(output_dir=str(tmp_path), dataset_name="data", report_to="none",
                           **{NAMES.get(name, name): value for name, value in changed.items()})
    assert args.rollout_config(4) == RolloutConfig(**changed)


def test_flags_win_over_a_folders_settings_and_these_over_defaults():
    parser = argparse.ArgumentParser()
    add_rollout_flags(parser, ["temperature", "text_top_k", "grammar", "cuda_graphs", "seed"])
    flags = vars(parser.parse_args(["--temperature", "0.5", "--grammar", "chain"]))
    config = RolloutConfig.from_settings({"temperature": 0.7, "text_top_k": 1}, "model", **flags)
    assert config == RolloutConfig(temperature=0.5, text_top_k=1, grammar="chain")
    assert "Divides the scores" in parser.format_help() and "chain settings" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--grammar", "free"])


@pytest.mark.parametrize("settings, message", [
    ({"heat": 1}, "model: sampling has the unknown key 'heat'; known are cache_dtype, "),
    ({"temperature": 0}, "model: bad sampling settings: temperature is 0"),
    ({"text_top_k": "many"}, "model: sampling: text_top_k is 'many'; it must be a whole number")])
def test_a_folders_bad_settings_are_named_with_their_source(settings, message):
    with pytest.raises(UserError, match=message):
        RolloutConfig.from_settings(settings, "model")


def test_a_bad_flag_is_not_put_down_to_the_folder():
    with pytest.raises(UserError, match="^temperature is 0"):
        RolloutConfig.from_settings({}, "model", temperature=0.0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_chain_may_have_any_number_of_images(count):
    assert len(RolloutConfig(image_sizes=[(1, 2)] * count).image_sizes) == count
