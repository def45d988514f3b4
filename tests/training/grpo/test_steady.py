"""A run ends at its last step, keeps only finite checkpoints, and saves when it is told to stop."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy
from realsr_r1.training.checkpoints import complete_checkpoints
from realsr_r1.training.launch import is_finished, train_and_save

from .conftest import Letters

# Short completions: these tests are about steps.
SHORT = {"grammar": "image", "max_completion_length": 12}
SAVING = {**SHORT, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 1e-3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder).state_dict()


def assert_equal(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Telling(Letters):
    """Sends its process a signal when it is asked at a step, counted from 0."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self.number, self.step = number, step

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        if columns["trainer_state"].global_step == self.step:
            os.kill(os.getpid(), self.number)
        return super().__call__(completions, **columns)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def uninterrupted(whole, make_trainer) -> Path:
    """A run of three steps that nobody interrupted, made once."""
    if not is_finished(whole):
        trainer, _ = make_trainer(output_dir=str(whole), max_steps=3, **SAVING)
        assert train_and_save(trainer, trainer.processor, whole, None) == 0
    return whole


def test_a_run_that_died_before_its_model_folder_takes_no_further_step(uninterrupted, make_trainer):
    output = uninterrupted.with_name("died")
    trainer, reward = make_trainer(output_dir=str(output), max_steps=3, **SAVING)
    assert train_and_save(trainer, trainer.processor, output, uninterrupted / "checkpoint-3") == 0
    assert trainer.state.global_step == 3 and not reward.seen
    assert_equal(output, uninterrupted)


def test_nor_does_one_that_stop_if_had_ended(make_trainer, tmp_path):
    changes = {"max_steps": 3, "stop_if": ["reward<9 for 2"], "logging_steps": 1, **SAVING}
    trainer, _ = make_trainer(**changes)
    trainer.train()
    again, reward = make_trainer(**changes)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert again.state.global_step == 2 and not reward.seen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                              (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_step_and_the_run_goes_on_as_if_nothing_was(
        number, code, uninterrupted, make_trainer, tmp_path, capsys):
    output = tmp_path / "run"
    changes = {"max_steps": 3, **SAVING, "save_steps": 100, "save_only_model": True}
    trainer, _ = make_trainer(first=Telling(number, 1), **changes)
    assert train_and_save(trainer, trainer.processor, output, None) == code
    said = [line for line in capsys.readouterr().out.splitlines() if "ended by" in line]
    assert len(said) == 1 and f"{number.name} at step 2 of 3; saved as checkpoint-2" in said[0]
    assert sorted(complete_checkpoints(output)) == [2] and not is_finished(output)
    again, _ = make_trainer(**changes)
    assert train_and_save(again, again.processor, output, output / "checkpoint-2") == 0
    assert_equal(output, uninterrupted)


def test_where_the_grace_is_short_it_is_saved_as_the_last_step_left_it(uninterrupted, make_trainer, tmp_path):
    output, changes = tmp_path / "run", {"max_steps": 3, **SAVING, "save_steps": 100, "grace_seconds": 0.0}
    trainer, _ = make_trainer(first=Telling(signal.SIGTERM, 2), **changes)
    assert train_and_save(trainer, trainer.processor, output, None) == 143
    assert sorted(complete_checkpoints(output)) == [2]
    again, _ = make_trainer(**changes)
    assert train_and_save(again, again.processor, output, output / "checkpoint-2") == 0
    assert_equal(output, uninterrupted)


def test_a_diverged_policy_ends_the_run_and_leaves_only_finite_checkpoints(make_trainer, tmp_path):
    trainer, _ = make_trainer(max_steps=9, **{**SAVING, "learning_rate": 1e25}, save_total_limit=1)
    with pytest.raises(UserError, match=r"not finite.*goes on from the last good .*checkpoint-\d"):
        trainer.train()
    (kept,) = complete_checkpoints(tmp_path / "run").values()
    assert all(tensor.isfinite().all() for tensor in weights(kept).values())


def test_no_model_folder_is_written_of_weights_that_are_not_finite(make_trainer, tmp_path):
    trainer, _ = make_trainer(max_steps=1, **SHORT, learning_rate=0.0)
    trainer.train()
    next(trainer.model.parameters()).data.view(-1)[0] = math.nan
    with pytest.raises(UserError, match="no model folder is written"):
        trainer.require_finite_weights()


def test_a_new_optimizer_takes_step_and_schedule_from_the_checkpoint(uninterrupted, make_trainer):
    changes = {"max_steps": 3, "logging_steps": 1, "lr_scheduler_type": "linear", **SAVING}
    trainer, _ = make_trainer(output_dir=str(uninterrupted.with_name("linear")), **changes)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    other, reward = make_trainer(**{**changes, "optim": "sgd", "reset_optimizer": True})
    other.train(resume_from_checkpoint=str(uninterrupted.with_name("linear") / "checkpoint-2"))
    assert len(reward.seen) == 1 and other.state.global_step == 3
    assert other.state.log_history[-2]["learning_rate"] == rates[2] < rates[1]
    assert type(other.optimizer.optimizer) is torch.optim.SGD


def test_more_steps_than_before_follow_the_longer_schedule_from_their_first_on(make_trainer, tmp_path):
    changes = {"logging_steps": 1, "lr_scheduler_type": "linear", **SAVING}

    def rates(trainer: Any) -> list[float]:
        return [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]

    longer, _ = make_trainer(output_dir=str(tmp_path / "longer"), max_steps=4, **changes)
    longer.train()
    short, _ = make_trainer(max_steps=2, **changes)
    short.train()
    more, _ = make_trainer(max_steps=4, **changes)
    more.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert rates(more)[2:] == rates(longer)[2:] and min(rates(longer)[:3]) > 0
    before, after = (weights(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 3))
    assert any(not torch.equal(before[name], after[name]) for name in before)
