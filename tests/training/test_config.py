"""The seed's settings, counted in prompts, become TRL's, counted in completions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from realsr_r1.core.errors import UserError
from realsr_r1.training.config import ChainGRPOConfig, ColdStartConfig


@pytest.fixture
def config(tmp_path):
    """A function that makes a `ChainGRPOConfig` from the fields that matter."""
    return lambda **fields: ChainGRPOConfig(output_dir=str(tmp_path), dataset_name="data", report_to="none",
                                            **fields)


@pytest.mark.parametrize("prompts, group, micro, accumulation, expected", [
    (1, 5, None, 1, (5, 1, 1)),  # published: a group is one batch of the loss
    (1, 5, 1, 1, (1, 5, 5)),
    (4, 16, 16, 1, (16, 4, 4)),
    (2, 8, 4, 3, (4, 4, 12)),
])
def test_prompts_become_completions(config, prompts, group, micro, accumulation, expected):
    args = config(per_device_train_batch_size=prompts, num_generations=group, loss_batch_size=micro,
                  gradient_accumulation_steps=accumulation)
    assert (args.per_device_train_batch_size, args.steps_per_generation,
            args.gradient_accumulation_steps) == expected
    assert args.per_device_train_batch_size * args.steps_per_generation == prompts * group


def test_completions_stay_completions(config):
    args = config(batch_unit="completions", per_device_train_batch_size=4, num_generations=4,
                  gradient_accumulation_steps=2)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 2)


def test_the_defaults_are_the_seeds(config):
    args = config()
    assert (args.loss_type, args.scale_rewards, args.beta, args.temperature,
            args.num_generations) == ("grpo", "group", 0.0, 1.0, 5)
    assert (args.rollout_temperature, args.guidance_scale, args.image_top_k_min,
            args.image_top_k_max) == (0.9, 0.8, 1, 2000)


@pytest.mark.parametrize("most, group, micro", [(8, 5, 5), (8, 8, 8), (3, 5, 2), (64, 5, 10), (1, 7, 1)])
def test_loss_batch_size_is_the_most_that_divides_the_completions(config, most, group, micro):
    args = config(per_device_train_batch_size=2, num_generations=group, loss_batch_size=most)
    assert args.per_device_train_batch_size == micro
    assert args.steps_per_generation * micro == 2 * group


EXACT = {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("stage, steps, expected", [(3, 1, {}), (3, 2, EXACT), (2, 2, EXACT), (1, 2, {}),
                                                    (0, 2, {})])
def test_under_zero_gradients_of_microbatches_are_added_up_in_float32(stage, steps, expected, config):
    file = Path(__file__).resolve().parents[2] / "local_scripts" / "zero3.json"
    settings = json.loads(file.read_text()) | {"zero_optimization": {"stage": stage}}
    try:
        args = config(deepspeed=settings, gradient_accumulation_steps=steps)
        assert args.deepspeed_plugin.deepspeed_config.get("data_types", {}) == expected
    finally:
        unset_hf_deepspeed_config()


@pytest.mark.parametrize("zero", [{"stage": 2}, {"stage": 3, "offload_optimizer": {"device": "cpu"}}])
def test_states_that_cannot_leave_are_refused(zero, config):
    settings = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}
    try:
        with pytest.raises(UserError, match="--offload_during_rollout goes with .*zero3.json"):
            config(deepspeed=settings, offload_during_rollout=True)
    finally:
        unset_hf_deepspeed_config()


@pytest.mark.parametrize("fields, message", [
    ({"num_generations": 1}, "--num_generations 1"),
    ({"sample_steps": -1}, "--sample_steps -1"),
    ({"remove_unused_columns": True}, "--remove_unused_columns true would take the columns away"),
    ({"loss_batch_size": 0}, "--loss_batch_size 0"),
    ({"batch_unit": "completions", "loss_batch_size": 2}, "--loss_batch_size"),
    ({"grammar": "free"}, "'free'"),
    ({"rollout_temperature": 0.0}, "temperature"),
    ({"image_top_k_max": 0}, "image_top_k_max"),
    ({"batch_unit": "completions", "per_device_train_batch_size": 3, "num_generations": 5},
     "num_generations"),
])
def test_values_that_cannot_work_are_refused(config, fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


@pytest.mark.parametrize("make", [ChainGRPOConfig, ColdStartConfig])
def test_a_missing_dataset_is_said(make, tmp_path):
    with pytest.raises(UserError, match="--dataset_name"):
        make(output_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["loss_type", "scale_rewards", "multi_objective_aggregation",
                                  "importance_sampling_level"])
def test_an_unknown_word_of_the_objective_is_refused_before_any_rollout(config, name):
    with pytest.raises(UserError, match=f"--{name} is 'wrong'; it must be one of"):
        config(**{name: "wrong"})


def test_a_recipe_may_give_one_condition_without_a_list(config):
    assert config(stop_if="format<0.5 for 20").stop_if == ["format<0.5 for 20"]
