"""LoRA and QLoRA: flags become adapters on the right layers, and only adapters are trained, in GRPO
and SFT alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import HfDeepSpeedConfig
from trl import ModelConfig

from realsr_r1 import export, grpo, sft
from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy
from realsr_r1.models.loading import tensor_shapes
from realsr_r1.models.protocol import LAYER_MATRICES
from realsr_r1.training.adapters import adapter_config, quantization_config

from ..end_to_end.policies import random_policy
from ..small import exit_code, write_dataset

QUANTISED = {"load_in_4bit": ["--load_in_4bit", "--use_bnb_nested_quant"], "load_in_8bit": ["--load_in_8bit"]}


@pytest.fixture(scope="module")
def model(processor, tmp_path_factory) -> Path:
    """A random policy whose matrices are multiples of 64 wide: bitsandbytes quantises blocks of
    that size.
    """
    return random_policy(tmp_path_factory.mktemp("model"), processor)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


def train(main: Any, model: Path, records: Path, output: Path, *more: str) -> list[dict[str, float]]:
    """A run of two steps; returns what it logged at each."""
    argv = ["--dataset_name", str(records), "--model_name_or_path", str(model), "--output_dir", str(output),
            "--max_steps", "2", "--learning_rate", "1e-2", "--warmup_steps", "0", "--report_to", "none",
            "--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true", "--lr_scheduler_type",
            "constant", *more]
    if main is grpo.main:
        argv += ["--max_completion_length", "40", "--num_generations", "3", "--reward_funcs",
                 f"{__name__}:vowels", "--rollout_temperature", "2", "--sample_steps", "0"]
    assert exit_code(main, argv) == 0
    lines = [json.loads(line) for line in (output / "log_history.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def vowels(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs between completions."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


@pytest.mark.parametrize("given, expected", [
    (None, list(LAYER_MATRICES)), ("all-linear", "all-linear"), (["all-linear"], "all-linear"),
    (["q_proj"], ["q_proj"]), (["q_proj", "down_proj"], ["q_proj", "down_proj"])])
def test_adapters_go_on_all_matrices_of_the_layers_or_on_those_named(given, expected):
    config = adapter_config(ModelConfig(use_peft=True, lora_r=8, lora_alpha=4, lora_target_modules=given))
    assert config.target_modules == (set(expected) if isinstance(expected, list) else expected)
    assert (config.r, config.lora_alpha, config.bias) == (8, 4, "none")


def test_without_use_peft_there_is_no_adapter():
    assert adapter_config(ModelConfig(lora_r=8)) is None
    assert quantization_config(ModelConfig(use_peft=True)) is None


@pytest.mark.parametrize("flags, message", [
    (dict(use_peft=True, lora_target_modules=["q_proj", "query"]), "--lora_target_modules query: .* have "
                                                                   "q_proj, k_proj"),
    # The loss reads the head's weight directly, past an adapter.
    (dict(use_peft=True, lora_target_modules=["lm_head"]), "--lora_target_modules lm_head"),
    (dict(load_in_4bit=True), "--load_in_4bit .* need --use_peft true"),
    (dict(load_in_8bit=True), "--load_in_8bit need --use_peft true")])
def test_flags_that_can_not_work_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        adapter_config(ModelConfig(**flags))


def test_few_bits_without_bitsandbytes_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes package"):
        quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))


def test_few_bits_under_zero3_are_refused():
    pytest.importorskip("bitsandbytes", reason="not installed")
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(UserError, match="ZeRO-3"):
        quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    del zero3  # transformers knows of it for as long as it is alive
    assert quantization_config(ModelConfig(use_peft=True, load_in_4bit=True)).load_in_4bit


def test_adapters_need_a_policy(tiny_model, records, tmp_path, capsys):
    (tmp_path / "tokenizers").mkdir()
    for file in tiny_model.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (tmp_path / "tokenizers" / file.name).symlink_to(file)
    argv = ["--dataset_name", str(records), "--model_name_or_path", str(tmp_path / "tokenizers"),
            "--output_dir", str(tmp_path / "run"), "--report_to", "none", "--use_peft"]
    assert exit_code(sft.main, argv) == 2
    assert "holds no policy" in capsys.readouterr().err


def test_a_run_of_adapters_is_not_taken_for_a_policy(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"merge them with realsr-r1 export --checkpoint {tmp_path}"):
        load_policy(tmp_path)


def test_a_rollout_leaves_the_gradients_of_a_policy_of_four_bits_as_they_were(model):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes, which is not installed")
    few_bits = quantization_config(ModelConfig(use_peft=True, load_in_4bit=True, dtype="bfloat16"))
    policy = load_policy(model, dtype="bfloat16", quantization_config=few_bits)
    embeddings = policy.get_input_embeddings()(torch.arange(8)[None]).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        policy.train()
        return torch.autograd.grad(policy(inputs_embeds=embeddings).logits.float().square().mean(),
                                   embeddings)[0]

    before = gradient()
    policy.eval()
    with torch.no_grad():
        policy(input_ids=torch.arange(8)[None])
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


@pytest.mark.parametrize("flags", [[], ["--gradient_checkpointing"], *QUANTISED.values()], ids=str)
@pytest.mark.parametrize("main", [sft.main, grpo.main], ids=["sft", "grpo"])
def test_only_adapters_are_trained_and_saved(main, flags, model, records, tmp_path):
    if any("load_in" in flag for flag in flags):
        pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes, which is not installed")
    more = ["--beta", "0.04"] if main is grpo.main else []
    logged = train(main, model, records, tmp_path / "run", "--use_peft", "--lora_r", "4", *flags, *more)
    adapters = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    # They begin at 0
    changed = [name for name, tensor in adapters.items() if "lora_B" in name and tensor.any()]
    assert len(changed) == len(adapters) / 2 == 2 * len(LAYER_MATRICES)  # of a policy of two layers
    if main is grpo.main:
        # The reference is the policy with its adapters off
        assert abs(logged[0]["kl"]) < 1e-6 < logged[1]["kl"]
    else:
        assert logged[1]["loss"] < logged[0]["loss"]

    export.main(["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    base, merged = load_policy(model).state_dict(), load_policy(tmp_path / "model").state_dict()
    assert tensor_shapes(tmp_path / "model") == tensor_shapes(model)
    different = {name for name in base if not torch.equal(base[name], merged[name])}
    assert different == {name for name in base if any(f"{layer}.weight" in name for layer in LAYER_MATRICES)}
