"""Every recipe opens with its launch command, and has only settings that its stage understands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from trl import ModelConfig

from realsr_r1.core.settings import parse
from realsr_r1.train_tokenizer import TokenizerTrainingConfig
from realsr_r1.training.adapters import adapter_config
from realsr_r1.training.config import ChainGRPOConfig, ColdStartConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
# What a launch command has in it -> the settings of its stage.
STAGES: dict[str, tuple[type, ...]] = {
    r"train-tokenizer": (TokenizerTrainingConfig,),
    r"train_sft\.sh|realsr-r1 sft": (ColdStartConfig, ModelConfig),
    r"train_grpo\.sh|grpo\.py|evidence\.sh": (ChainGRPOConfig, ModelConfig)}


def opening(recipe: Path) -> str:
    """The comment at the top."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[:next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def settings(name: str, output: Path, *flags: str) -> tuple[Any, ...]:
    recipe = ROOT / "configs" / "recipes" / name
    (stage,) = [classes for pattern, classes in STAGES.items() if re.search(pattern, opening(recipe))]
    return parse(stage, ["--config", str(recipe), "--output_dir", str(output), "--dataset_name", "data",
                         *flags], "test")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_parses_as_the_stage_that_its_command_launches(recipe, tmp_path):
    assert f"configs/recipes/{recipe.name}" in opening(recipe) or "scripts/evidence.sh" in opening(recipe)
    for script in re.findall(r"(?:scripts|configs|local_scripts|src)/[\w/.]+", opening(recipe)):
        assert (ROOT / script.rstrip(".")).exists(), script
    assert settings(recipe.name, tmp_path)


@pytest.mark.parametrize("name, bits", [("lora_grpo.yaml", 16), ("lora_sft.yaml", 16),
                                        ("qlora_grpo.yaml", 4)])
def test_the_adapter_recipes_put_adapters_on_every_matrix(name, bits, tmp_path):
    _, model_args = settings(name, tmp_path)
    config = adapter_config(model_args)
    assert config.lora_alpha == 2 * config.r and len(config.target_modules) == 7
    assert model_args.load_in_4bit == (bits == 4) and model_args.dtype == "bfloat16"


def test_the_papers_settings_are_those_of_its_launch_line(tmp_path):
    args, _ = settings("pure_7b_grpo.yaml", tmp_path)
    assert (args.max_prompt_length, args.max_completion_length, args.num_generations) == (5000, 7000, 5)
    assert (args.learning_rate, args.num_train_epochs, args.beta, args.bf16) == (2e-6, 2, 0.0, True)
    assert args.generation_batch_size // args.num_generations == 1  # one prompt a device


@pytest.mark.parametrize("name, rate, schedule, warmup, length, z_loss", [
    ("lumina_7b_sft.yaml", 2e-5, "constant_with_warmup", 0.01, 4096, 1e-5),
    ("pure_7b_sft.yaml", 4e-4, "cosine", 0.5, 11_776, 0.0)])
def test_the_cold_starts_are_the_published_ones(name, rate, schedule, warmup, length, z_loss, tmp_path):
    args, _ = settings(name, tmp_path)
    assert (args.learning_rate, args.lr_scheduler_type, args.max_length,
            args.num_train_epochs) == (rate, schedule, length, 2)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.1, 4.0)
    assert (args.dropout, args.z_loss) == (0.05, z_loss)
    assert args.get_warmup_steps(2000) == 1000 * warmup  # in epochs, of which there are two
