"""Rewards and their options in a run of `realsr-r1 grpo`; held-out experts are scored and not trained on."""

from __future__ import annotations

import json

import pytest

from realsr_r1.grpo import main
from realsr_r1.training.callbacks import LOG_FILE

from ...small import exit_code, write_dataset


@pytest.fixture
def argv(model, tmp_path) -> list[str]:
    dataset = write_dataset(tmp_path / "dataset", train=1, test=1)
    return ["--model_name_or_path", str(model), "--dataset_name", str(dataset), "--output_dir",
            str(tmp_path / "run"), "--max_steps", "1", "--num_generations", "2", "--grammar", "chain",
            "--max_completion_length", "350", "--max_text_tokens", "4", "--guidance_scale", "1",
            "--save_strategy", "no", "--sample_steps", "0", "--logging_steps", "1", "--report_to", "none",
            "--experts", "ssim:2", "--reward_funcs", "understanding", "fidelity", "progress",
            "--tag_precision", "true"]


def test_held_out_experts_are_logged_at_evaluations_only(argv, tmp_path):
    assert exit_code(main, [*argv, "--credit", "section", "--eval_strategy", "steps", "--eval_steps", "1",
                            "--monitor_experts", "gmsd", "piqe"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG_FILE).read_text().splitlines()]
    (evaluated,) = [line for line in lines if "eval_reward" in line]
    for name in ("gmsd", "piqe"):
        assert 0 <= evaluated[f"eval_monitor/{name}"] <= 1
    assert not any(key.startswith("monitor") for line in lines for key in line)
    rewards = {key for line in lines for key in line if key.startswith("rewards/") and key.endswith("/mean")}
    assert rewards == {f"rewards/{name}_reward/mean" for name in ("understanding", "fidelity", "progress")}


@pytest.mark.parametrize("more, message", [
    (["--monitor_experts", "gmsd"], "--monitor_experts are scored at evaluations"),
    (["--monitor_experts", "ssim", "--eval_strategy", "epoch"], "the progress reward trains on ssim"),
    (["--expert_device", "gpu7"], "--expert_device gpu7 can't be used here"),
    (["--neighbour_credit", "0.5"], "--neighbour_credit has no effect"),
    (["--experts", "musik"], "did you mean musiq"),
    (["--tag_synonyms", "nowhere.yaml"], "no such file: nowhere.yaml (given by --tag_synonyms)")])
def test_a_bad_option_ends_the_run_with_one_line_and_exit_code_2(argv, capsys, more, message):
    assert exit_code(main, [*argv, *more]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
