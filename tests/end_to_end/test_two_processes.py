"""GRPO as two real processes under torchrun with DeepSpeed ZeRO-3, through `scripts/train_grpo.sh`
and a recipe.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from realsr_r1 import grpo
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.models import load_policy

from ..small import exit_code
from .policies import steered_policy
from .processes import ROOT, Run
from .two_processes import STEPS, TwoProcesses, train

HANG_LIMIT = 60.0  # seconds from the start of training to the end of the process
GO_ON, STOP = "Describe and restore this photo.", "Nothing, nothing, nothing to do."


def within_limit_after_start(run: Run) -> int:
    """Wait for the start of training in both ranks as long as it takes, and for its end no longer
    than the limit.
    """
    seen = run.log.parent / "seen"
    run.wait_for(lambda: all((seen / f"begin-rank{rank}.json").is_file() for rank in (0, 1)))
    return run.finish(HANG_LIMIT)


@pytest.fixture(scope="module")
def uneven(dataset, processor, tmp_path_factory) -> TwoProcesses:
    """One rank's prompt is answered with nothing, the other's with all the tokens there may be.

    Of five steps `--stop_if` leaves two, by a number that each rank measures for itself.
    """
    from realsr_r1 import create_json

    folder = tmp_path_factory.mktemp("uneven")
    records = json.loads((dataset / "train.json").read_text())[:2]
    for record, problem in zip(records, (GO_ON, STOP), strict=True):
        record.update(image_path=str(dataset / record["image_path"]),
                      hq_path=str(dataset / record["hq_path"]), problem=problem)
    (folder / "two.json").write_text(json.dumps(records))
    assert not create_json.main(["--json", str(folder / "two.json"), "--images", str(dataset), "--output",
                                 str(folder / "dataset")])
    model = steered_policy(folder / "model", processor, {processor.layout.image_start: 10.0}, ends_after=STOP,
                           but_not_after=GO_ON)
    return train(folder, model, folder / "dataset", [
        "--reward_funcs", "probe:vowels", "--grammar", "image", "--max_completion_length", "400",
        "--num_generations", "2",
        "--per_device_train_batch_size", "1", "--loss_batch_size", "2", "--guidance_scale", "0.8",
        "--save_steps", "100", "--max_steps", "5", "--stop_if", f"step_time>0 for {STEPS}",
        "--sample_steps", "0"], limit=within_limit_after_start)


def test_parameters_are_partitioned_over_the_ranks(trained, small_model):
    parts = [trained.facts("begin", rank)["parts"] for rank in (0, 1)]
    shapes = {name: tensor.numel() for name, tensor in load_policy(small_model).named_parameters()}
    assert {name: part["all"] for name, part in parts[0].items()} == shapes
    for name, numbers in shapes.items():
        assert [part[name]["here"] for part in parts] == [-(-numbers // 2)] * 2  # half each, rounded up


@pytest.mark.parametrize("fixture", ["trained", "uneven"])
def test_both_ranks_hold_the_same_weights_and_every_step_moves_them(fixture, request):
    run = request.getfixturevalue(fixture)
    for before, after in (("begin", "step-1"), ("step-1", "step-2")):
        old, first, second = run.weights(before, 0), run.weights(after, 0), run.weights(after, 1)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert max(float((first[name] - old[name]).abs().max()) for name in first) > 1e-5


def test_the_run_ends_although_one_rank_writes_much_longer_completions(uneven):
    for step in range(STEPS):
        lengths, problems = ([uneven.facts(f"completions-{step}", rank)[name] for rank in (0, 1)]
                             for name in ("lengths", "problems"))
        for rank in (0, 1):
            assert lengths[rank] == ([1, 1] if problems[rank][0] == STOP else [400, 400])
        assert sorted(map(min, lengths)) == [1, 400]


def test_a_condition_ends_the_run_on_both_ranks_with_a_checkpoint(uneven):
    stop = json.loads((uneven.folder / "stopped.json").read_text())
    assert stop["step"] == STEPS and stop["best_checkpoint"] == f"checkpoint-{STEPS}"
    assert uneven.output.count(f"stopped at step {STEPS} by --stop_if") == 1
    weights = uneven.weights(f"step-{STEPS}", 1)
    for folder in (uneven.folder, uneven.folder / f"checkpoint-{STEPS}"):
        for name, parameter in load_policy(folder).named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-6)


def test_it_goes_on_in_one_process_without_deepspeed_only_with_a_new_optimizer(trained, small_model, dataset,
                                                                              tmp_path, capsys):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    argv = ["--config", str(ROOT / "configs/recipes/tiny_grpo.yaml"), "--output_dir", str(run),
            "--model_name_or_path", str(small_model), "--dataset_name", str(dataset), "--reward_funcs",
            "format", "degradation", "--grammar", "chain", "--max_text_tokens", "6",
            "--max_completion_length", "400", "--num_generations", "3", "--per_device_train_batch_size", "2",
            "--loss_batch_size", "3", "--max_steps", "3", "--learning_rate", "0", "--save_strategy", "no",
            "--sample_steps", "0", "--report_to", "none"]
    files = sorted(path.relative_to(run) for path in run.rglob("*"))
    assert exit_code(grpo.main, argv) == 2
    assert "made with DeepSpeed ZeRO-3 on 2 processes" in capsys.readouterr().err
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == files
    assert exit_code(grpo.main, [*argv, "--reset_optimizer"]) == 0
    weights = trained.weights("step-2", 0)
    for name, parameter in load_policy(run).named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-6)
    lines = [json.loads(line) for line in (run / "log_history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert not (run / ".weights").exists()


@pytest.mark.parametrize("part", ["checkpoint-1", "checkpoint-2", "."])
def test_a_checkpoint_is_a_whole_model_folder(trained, part):
    weights = trained.weights(f"step-{1 if part == 'checkpoint-1' else 2}", 0)
    policy = load_policy(trained.folder / part)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-6)
    assert (policy.generation_config.eos_token_id
            == ChainProcessor.from_pretrained(trained.folder / part).layout.end_of_turn)


def test_every_reward_is_logged(trained):
    lines = [json.loads(line) for line in (trained.folder / "log_history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        for reward in ("format_reward", "degradation_reward", "understanding_reward", "generation_reward",
                       "vowels"):
            assert isinstance(line[f"rewards/{reward}/mean"], float), reward
        assert line["rewards/format_reward/mean"] == 1.0  # the chain grammar leaves no other
        assert line["reward_std"] > 0


@pytest.mark.parametrize("step", [1, 2])
def test_samples_of_one_group_are_written(trained, step):
    folder = trained.folder / "samples" / f"step-{step:06d}"
    completions = [f"completion-{index}{ending}" for index in range(3)
                   for ending in (".txt", "-rough.png", "-middle.png", "-final.png")]
    assert {file.name for file in folder.iterdir()} == {"prompt.json", "lq.png", "hq.png", "rewards.json",
                                                        "chain.json", *completions}
    rewards = json.loads((folder / "rewards.json").read_text())
    assert set(rewards) == {"format", "degradation", "understanding", "generation", "vowels", "total"}
    for index in range(3):
        parts = [values[index] for name, values in rewards.items() if name != "total"]
        assert rewards["total"][index] == pytest.approx(sum(parts), abs=1e-4)
    prompt = json.loads((folder / "prompt.json").read_text())
    assert prompt["source"] and prompt["tag"] and len(prompt["degradation"]) == 5 and prompt["problem"]


def test_the_text_log_holds_every_completion_with_its_rewards(trained):
    log = (trained.folder / "reward_log.txt").read_text()
    heads = [line for line in log.splitlines() if line.startswith("step ")]
    assert sorted(line.partition(":")[0] for line in heads) == [
        f"step {step}, rank {rank}, completion {index}" for step in (1, 2) for rank in (0, 1)
        for index in range(3)]
    assert all("format" in line and "vowels" in line and "total" in line for line in heads)
    assert log.count("<final_image><|image|></final_image>") == len(heads)
