"""A run that is killed goes on, when the same command is given again, from the last checkpoint that
counts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from realsr_r1.models import load_policy
from realsr_r1.training.checkpoints import complete_checkpoints

from .processes import Run, start

STEPS = 4


@dataclass
class Interrupted:
    """Two runs of the same command, one left alone, one killed twice; and what its three starts
    said.
    """

    whole: Path
    killed: Path
    began_at: list[int]
    outputs: list[str]
    kept_at_kill: list[list[int]]


def command(dataset: Path, model: Path, output: Path) -> list[str]:
    return [sys.executable, "src/realsr_r1/grpo.py", "--output_dir", str(output), "--model_name_or_path",
            str(model),
            "--dataset_name", str(dataset), "--reward_funcs", "format", "probe:vowels", "--grammar", "chain",
            "--max_text_tokens", "6", "--max_completion_length", "400", "--num_generations", "3",
            "--guidance_scale", "1",
            "--learning_rate", "1e-3", "--max_steps", str(STEPS), "--save_steps", "1", "--save_total_limit",
            "1",
            "--logging_steps", "1", "--sample_steps", "0", "--report_to", "none", "--seed", "3"]


@pytest.fixture(scope="module")
def interrupted(dataset, small_model, tmp_path_factory) -> Interrupted:
    folder = tmp_path_factory.mktemp("interrupted")
    facts = Interrupted(folder / "whole", folder / "killed", [], [], [])

    def launch(output: Path, number: int, stop: str | None = None) -> tuple[Run, Path]:
        seen = folder / f"{output.name}-{number}"
        seen.mkdir()
        return start(command(dataset, small_model, output), seen / "log.txt",
                     {"PROBE_FOLDER": str(seen), "PROBE_STOP": stop}), seen

    whole, _ = launch(facts.whole, 0)  # beside the others: there are two cores
    try:
        for number, stop in enumerate(["step 3", "save 3", None]):
            run, seen = launch(facts.killed, number, stop)
            if stop:
                run.wait_for((seen / "stopped-rank0.json").is_file)
                run.kill()
            else:
                assert run.finish() == 0, run.output()[-4000:]
            facts.began_at.append(json.loads((seen / "begin-rank0.json").read_text())["step"])
            facts.outputs.append(run.output())
            facts.kept_at_kill.append(sorted(complete_checkpoints(facts.killed)))
        assert whole.finish() == 0, whole.output()[-4000:]
    finally:
        whole.end()
    return facts


def test_it_goes_on_from_the_last_complete_checkpoint(interrupted):
    assert interrupted.began_at == [0, 2, 2]  # killed before step 3, and in the save after step 3


def test_there_is_a_complete_checkpoint_whenever_it_is_killed(interrupted):
    assert interrupted.kept_at_kill[:2] == [[2], [2]]  # although --save_total_limit is 1


def test_a_half_written_checkpoint_is_set_aside_with_one_line(interrupted):
    assert (interrupted.killed / "incomplete-checkpoint-3.0").is_dir()
    assert [output.count("half written") for output in interrupted.outputs] == [0, 0, 1]


def test_final_weights_equal_those_of_an_uninterrupted_run(interrupted, small_model):
    first = load_policy(small_model).state_dict()
    whole, killed = (load_policy(folder).state_dict() for folder in (interrupted.whole, interrupted.killed))
    assert whole.keys() == killed.keys()
    assert max(float((whole[name] - first[name]).abs().max()) for name in whole) > 1e-3
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=0, atol=1e-5)


def test_the_log_has_every_step_once(interrupted):
    for folder in (interrupted.whole, interrupted.killed):
        lines = [json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))


def test_the_logged_rewards_are_those_of_the_uninterrupted_run(interrupted):
    whole, killed = ([json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]
                     for folder in (interrupted.whole, interrupted.killed))
    for name in ("reward", "learning_rate", "completions/mean_length"):
        assert [line[name] for line in killed
                if name in line] == pytest.approx([line[name] for line in whole if name in line])
