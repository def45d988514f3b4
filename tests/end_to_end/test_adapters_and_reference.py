"""Under ZeRO-3: GRPO with LoRA adapters, with a reference policy (`--beta 0.04`), with both;

SFT with adapters, and evaluated.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from realsr_r1 import export, sft
from realsr_r1.models import load_policy

from ..small import write_dataset
from .processes import ROOT, free_port, start
from .two_processes import STEPS, TwoProcesses

RUNS = {"lora": ["--use_peft"], "reference": ["--beta", "0.04"],
        "lora and reference": ["--use_peft", "--beta", "0.04", "--bf16", "--gradient_checkpointing"],
        "sft lora": ["--use_peft", "--bf16", "--gradient_checkpointing", "--z_loss", "1e-5", "--dropout",
                     "0.05", "--sample_steps", "2"]}
LORA, WITH_KL = [name for name in RUNS if "lora" in name], [name for name in RUNS if "reference" in name]
RESUMED = "lora, resumed from its first step"
EVALUATED = "sft, three samples to evaluate on two ranks by twos"
PREFIX = "base_model.model."  # of a policy's parameters inside peft's


@pytest.fixture(scope="module")
def published_model(small_model, tmp_path_factory) -> Path:
    """The small model under a config as Lumina-mGPT's, which names a class of transformers that
    can't hold it.
    """
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="chameleon", architectures=["ChameleonForConditionalGeneration"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def runs(dataset, published_model, tmp_path_factory) -> dict[str, TwoProcesses]:
    """All runs, made in one launch: two steps each, of short completions."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = []
    for name, flags in {**RUNS, RESUMED: RUNS["lora"]}.items():
        stage = "sft" if name == "sft lora" else "grpo"
        argv = ["--config", f"configs/recipes/tiny_{stage}.yaml", "--deepspeed", "local_scripts/zero3.json",
                "--output_dir",
                str(folder / name / "run"), "--model_name_or_path", str(published_model), "--dataset_name",
                str(dataset),
                "--max_steps", str(STEPS), "--learning_rate", "1e-3", "--warmup_steps", "0",
                "--per_device_train_batch_size", "1",
                "--save_steps", "1", *flags]
        if stage == "grpo":
            argv += ["--reward_funcs", "probe:vowels", "--max_completion_length", "60", "--num_generations",
                     "3",
                     "--loss_batch_size", "3", "--sample_steps", "0"]
        jobs.append({"stage": stage, "argv": argv, "seen": str(folder / name / "seen")})
        if name == RESUMED:
            jobs[-1]["copy"] = [str(folder / "lora" / "run" / "checkpoint-1"),
                                str(folder / RESUMED / "run" / "checkpoint-1")]
    jobs.append({"stage": "sft", "argv": evaluating(published_model, folder),
                 "seen": str(folder / EVALUATED / "seen")})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run = start([sys.executable, "scripts/tools/torchrun.py", "--nproc_per_node=2", "--master_addr=127.0.0.1",
                 f"--master_port={free_port()}", str(Path(__file__).parent / "several_runs.py"),
                 str(folder / "jobs.json")],
                folder / "log.txt", {"PYTHONPATH": f"{ROOT / 'src'}"})
    assert run.finish() == 0, run.output()[-6000:]
    return {name: TwoProcesses(folder / name / "run", run.output(), folder / name / "seen")
            for name in (*RUNS, RESUMED, EVALUATED)}


def evaluating(model: Path, folder: Path) -> list[str]:
    """Flags of a cold start that changes nothing, evaluated at its end."""
    dataset = write_dataset(folder / "three", train=2, test=3)
    return ["--config", "configs/recipes/tiny_sft.yaml", "--output_dir", str(folder / EVALUATED / "run"),
            "--dataset_name",
            str(dataset), "--model_name_or_path", str(model), "--max_steps", "1", "--learning_rate", "0",
            "--bf16", "false",
            "--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "2", "--eval_strategy",
            "steps",
            "--eval_steps", "1", "--logging_steps", "1"]


def logged(run: TwoProcesses, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run.folder / "log_history.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if "loss" in line and key in line]


@pytest.mark.parametrize("name", RUNS)
def test_what_should_move_moves_and_nothing_else(runs, name):
    for before, after in (("begin", "step-1"), ("step-1", "step-2")):
        old, new, elsewhere = runs[name].weights(before, 0), runs[name].weights(after,
                                                                                0), runs[name].weights(after,
                                                                                                       1)
        assert old.keys() == new.keys() == elsewhere.keys()
        moved = {key for key in old if not torch.equal(old[key], new[key])}
        assert all(torch.equal(new[key], elsewhere[key]) for key in new)
        if name in LORA:
            adapters = {key for key in old if "lora_" in key}
            layers = {key.partition(".lora_")[0].rpartition(".")[2] for key in adapters}
            assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
            assert moved <= adapters
            assert {key for key in adapters if "lora_B" in key} <= moved
        else:
            assert len(moved) > 0.9 * len(old)


@pytest.mark.parametrize("name", LORA)
def test_the_frozen_policy_is_the_folders_and_is_spread_over_the_ranks(runs, name, small_model):
    weights, parts = runs[name].weights("step-2", 1), runs[name].facts("begin", 0)["parts"]
    for key, parameter in load_policy(small_model).named_parameters():
        key = PREFIX + key if PREFIX + key in weights else PREFIX + key.replace(".weight",
                                                                                ".base_layer.weight")
        assert torch.equal(weights[key], parameter.bfloat16().float() if "--bf16" in RUNS[name]
                           else parameter), key
        assert parts[key]["here"] == -(-parameter.numel() // 2)


@pytest.mark.parametrize("name", WITH_KL)
def test_the_divergence_from_the_reference_is_nothing_first_and_then_grows(runs, name):
    first, second = logged(runs[name], "kl")
    assert abs(first) < 1e-6 < second


def test_without_beta_there_is_no_reference(runs):
    assert logged(runs["lora"], "kl") == []
    assert not list(runs["lora"].seen.glob("weights-reference-*"))


def test_the_reference_is_the_policy_at_the_start_and_stays_it(runs, small_model):
    expected = dict(load_policy(small_model).named_parameters())
    for rank in (0, 1):
        for when in ("begin", "end"):
            weights = runs["reference"].weights(f"reference-{when}", rank)
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], parameter) for key, parameter in expected.items())
    # adapters off: no second policy
    assert not list(runs["lora and reference"].seen.glob("weights-reference-*"))


def test_adapters_are_resumed_where_they_were(runs):
    before, after = runs["lora"].weights("step-1", 0), runs["lora"].weights("step-2", 0)
    for expected, when in ((before, "begin"), (after, "step-2")):
        found = runs[RESUMED].weights(when, 1)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)


def test_a_sample_that_fills_up_the_last_round_of_an_evaluation_isnt_counted_again(runs, published_model,
                                                                                   tmp_path):
    sft.main(evaluating(published_model, tmp_path))
    alone, together = (evaluation_losses(folder)
                       for folder in (tmp_path / EVALUATED / "run", runs[EVALUATED].folder))
    assert len(alone) > 7
    assert together == pytest.approx(alone, abs=1e-5)


def evaluation_losses(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "log_history.jsonl").read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items() if key.startswith("eval_loss")}


@pytest.mark.parametrize("name", RUNS)
def test_the_export_of_a_run_is_the_policy_it_ended_with(runs, name, small_model, tmp_path):
    weights, base = runs[name].weights("step-2", 0), dict(load_policy(small_model).named_parameters())
    export.main(["--checkpoint", str(runs[name].folder), "--output", str(tmp_path / "model")])
    for key, parameter in load_policy(tmp_path / "model").named_parameters():
        expected = base[key] if name in LORA else weights[key]
        down, up = (weights.get(f"{PREFIX}{key.removesuffix('.weight')}.lora_{part}.default.weight")
                    for part in "AB")
        if down is not None:
            expected = expected + 2 * up @ down  # lora_alpha / lora_r is 2
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
