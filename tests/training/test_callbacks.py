"""`log_history.jsonl` has every logged step once, whatever happened to the run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from realsr_r1.training.callbacks import LOG_FILE, JsonLog, OneLineLogs


def at(step: int, is_first_rank: bool = True) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=16, is_world_process_zero=is_first_rank)


@pytest.fixture
def args(tmp_path) -> SimpleNamespace:
    return SimpleNamespace(output_dir=str(tmp_path / "run"))


def steps(args: SimpleNamespace) -> list[int]:
    return [json.loads(line)["step"] for line in (Path(args.output_dir) / LOG_FILE).read_text().splitlines()]


def test_every_log_becomes_a_line(args):
    log = JsonLog()
    log.on_train_begin(args, at(0), None)
    for step in (1, 2):
        log.on_log(args, at(step), None, logs={"loss": 0.5, "rewards/format/mean": 1.0})
    lines = (Path(args.output_dir) / LOG_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "loss": 0.5, "rewards/format/mean": 1.0}
                                                    for step in (1, 2)]


def test_on_resume_the_steps_after_the_checkpoint_and_a_half_line_go(args):
    for step in (1, 2, 3, 4):
        JsonLog().on_log(args, at(step), None, logs={"loss": 0.5})
    with open(Path(args.output_dir) / LOG_FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    JsonLog().on_train_begin(args, at(2), None)
    assert steps(args) == [1, 2]
    JsonLog().on_log(args, at(3), None, logs={"loss": 0.5})
    assert steps(args) == [1, 2, 3]


def test_one_rank_writes(args):
    JsonLog().on_train_begin(args, at(0, is_first_rank=False), None)
    JsonLog().on_log(args, at(1, is_first_rank=False), None, logs={"loss": 0.5})
    assert not Path(args.output_dir).exists()


def test_numbers_of_numpy_and_torch_are_written_as_numbers(args):
    import numpy
    import torch

    JsonLog().on_log(args, at(1), None, logs={"a": numpy.float32(0.5), "b": torch.tensor(2.0)})
    assert json.loads((Path(args.output_dir) / LOG_FILE).read_text()) == {"step": 1, "a": 0.5, "b": 2.0}


LOGS = {"loss": 0.003104, "grad_norm": 0.8673, "reward": 2.245, "rewards/format_reward/mean": 1.0,
        "rewards/generation_reward/mean": 0.502, "rewards/generation_reward/std": 0.0856, "entropy": 3.408,
        "clip_ratio/low_mean": 0.0, "spread/format": 0.0, "step_time": 27.55}


def test_a_person_reads_one_line_a_log_and_from_where_a_run_goes_on(args, capsys):
    shown = OneLineLogs()
    shown.on_train_begin(args, at(6), None)
    shown.on_log(args, at(7), None, logs=LOGS)
    shown.on_log(args, at(7), None, logs={f"eval_{name}": value for name, value in LOGS.items()})
    shown.on_log(args, at(7), None, logs={"train_runtime": 61.2, "train_loss": 0.02})
    shown.on_log(args, at(8, is_first_rank=False), None, logs=LOGS)
    assert capsys.readouterr().out.splitlines() == [
        "going on from checkpoint-6 (step 6 of 16)",
        "step 7 of 16: loss 0.003104  reward 2.245  (format 1.000, generation 0.502)  gradient 0.8673  "
        "entropy 3.408  seconds 27.55",
        "step 7 of 16: evaluation: loss 0.003104  reward 2.245  (format 1.000, generation 0.502)  gradient "
        "0.8673  entropy 3.408  seconds 27.55",
        "step 7 of 16: trained in 61 s, mean loss 0.02"]
