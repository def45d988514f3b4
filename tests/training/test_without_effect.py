"""No flag of TRL or transformers is accepted and ignored: it takes effect, or one line refuses it.

Every setting is known here by name, so that the next version's new one is noticed.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, make_dataclass

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig

from realsr_r1.core.errors import UserError
from realsr_r1.training.without_effect import OF_4_BITS, OF_ADAPTERS, WITHOUT_EFFECT, refuse_without_effect

# What the installed TRL has besides transformers' own, and what takes effect here.
TAKES_EFFECT = {
    "disable_dropout", "cast_lm_head_to_fp32", "num_generations", "num_generations_eval", "max_completion_length",
    "ds3_gather_for_generation", "shuffle_dataset", "pad_to_multiple_of", "generation_batch_size",
    "steps_per_generation", "temperature", "beta", "num_iterations", "epsilon", "delta", "epsilon_high",
    "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg",
    "vespo_lambda_neg", "importance_sampling_level", "reward_weights", "multi_objective_aggregation",
    "scale_rewards", "loss_type", "mask_truncated_completions", "sync_ref_model", "ref_model_mixup_alpha",
    "ref_model_sync_steps", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "entropy_coef_min",
    "entropy_coef_max", "entropy_coef_delta", "entropy_target", "off_policy_mask_threshold",
    "use_bias_correction_kl", "log_completions", "log_multimodal", "num_completions_to_print",
    "log_unique_prompts", "log_completions_hub_repo",
    # of the model
    "model_name_or_path", "dtype", "attn_implementation", "use_peft", "load_in_8bit", "load_in_4bit"}
NAMES = {item.name: item for settings in (TrainingArguments, GRPOConfig, ModelConfig) for item in fields(settings)}
TRANSFORMERS = {item.name for item in fields(TrainingArguments)}


def settings(**values):
    """Settings with transformers' and TRL's defaults, but for these values."""
    defaults = {name: item.default if item.default_factory is MISSING else item.default_factory()
                for name, item in NAMES.items()}
    plain = make_dataclass("Settings", [(name, object, defaults[name]) for name in NAMES
                                        if not isinstance(defaults[name], list | dict)])
    return plain(**values)


def another(name: str) -> object:
    default = NAMES[name].default
    return not default if isinstance(default, bool) else (default or 0) + 1 if isinstance(
        default or 0, int | float) else "other"


def test_every_setting_of_trl_is_known():
    assert {*NAMES} - TRANSFORMERS == TAKES_EFFECT | {*WITHOUT_EFFECT, *OF_ADAPTERS, *OF_4_BITS} - TRANSFORMERS
    assert not TAKES_EFFECT & WITHOUT_EFFECT.keys()


def test_defaults_are_accepted():
    refuse_without_effect(settings())
    refuse_without_effect(settings(use_peft=True, lora_r=8, load_in_4bit=True, bnb_4bit_quant_type="fp4"))


@pytest.mark.parametrize("name", sorted({*WITHOUT_EFFECT, *OF_ADAPTERS, *OF_4_BITS}))
def test_what_would_be_ignored_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"--{name} .* has no effect"):
        refuse_without_effect(settings(**{name: another(name)}))


@pytest.mark.parametrize("command", ["grpo", "sft"])
def test_the_commands_refuse_them_before_anything_is_made(command, tmp_path):
    from realsr_r1.cli import dispatch

    with pytest.raises(UserError, match="--resume_from_checkpoint runs/old has no effect here: started again"):
        dispatch([command, "--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path), "--output_dir",
                  str(tmp_path / "run"), "--resume_from_checkpoint", "runs/old"])
    assert not (tmp_path / "run").exists()
