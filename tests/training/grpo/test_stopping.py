"""A policy that writes grey images is stopped by `--stop_if`; what its folder is then good for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from realsr_r1 import export, grpo
from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy
from realsr_r1.training.checkpoints import complete_checkpoints
from realsr_r1.training.config import ChainGRPOConfig
from realsr_r1.training.grpo.guards import Condition
from realsr_r1.training.grpo.logged import logged_names
from realsr_r1.training.grpo.stopping import StopGuard

from ...end_to_end.policies import steered_policy
from ...small import exit_code

GREY = "repeated_rows>0.9 for 2"
SAID = "stopped at step 2 by --stop_if 'repeated_rows>0.9 for 2' (repeated_rows was 1, 1)"
REWARDS = ["format", "degradation", "understanding"]


@pytest.fixture(scope="module")
def grey_model(processor, tmp_path_factory) -> Path:
    """A model folder whose policy prefers one code so much that its images are of one colour."""
    small = processor.with_settings(dataclasses.replace(processor.settings, target_px=16))
    return steered_policy(tmp_path_factory.mktemp("grey") / "model", small, {small.layout.code_ids[7]: 40.0})


@pytest.fixture(scope="module")
def argv(grey_model, dataset) -> Any:
    """A function that returns the arguments of a run of four steps at most."""
    def make(output: Path, *more: str) -> list[str]:
        return ["--model_name_or_path", str(grey_model), "--dataset_name", str(dataset), "--output_dir",
                str(output), "--reward_funcs", *REWARDS, "--grammar", "chain", "--max_text_tokens", "4",
                "--max_completion_length", "350", "--num_generations", "2", "--guidance_scale", "1",
                "--learning_rate", "1e-5", "--max_steps", "4", "--logging_steps", "1", "--sample_steps", "0",
                "--save_steps", "100", "--report_to", "none", *more]
    return make


@pytest.fixture(scope="module")
def grey_run(argv, tmp_path_factory) -> Path:
    """The folder of a run that was stopped."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    assert exit_code(grpo.main, argv(output, "--stop_if", GREY, "format<0.5 for 2", "--eval_strategy",
                                     "steps", "--eval_steps", "1", "--dataset_test_split", "test")) == 0
    return output


@pytest.fixture
def stopped(grey_run, tmp_path) -> Path:
    """A copy of that folder, to go on in."""
    return shutil.copytree(grey_run, tmp_path / "run")


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log_history.jsonl").read_text().splitlines()]


def test_a_policy_that_writes_grey_images_is_stopped(grey_run):
    steps = [record for record in log(grey_run) if "loss" in record]
    assert [record["repeated_rows"] for record in steps] == [1.0, 1.0]
    stop = json.loads((grey_run / "stopped.json").read_text())
    assert stop["reason"] == SAID and stop["step"] == 2 and stop["condition"] == GREY
    assert sorted(complete_checkpoints(grey_run)) == [2]
    assert stop["best_checkpoint"] == "checkpoint-2" and "in its evaluation" in stop["best_by"]


def test_a_stopped_run_is_a_finished_run_that_can_be_exported(grey_run, tmp_path):
    export.main(["--checkpoint", str(grey_run), "--output", str(tmp_path / "model")])
    assert load_policy(tmp_path / "model").config.vocab_size


def test_the_same_command_again_says_why_it_stopped_and_how_to_go_on(stopped, argv, capsys):
    assert exit_code(grpo.main, argv(stopped, "--stop_if", GREY)) == 0
    said = capsys.readouterr().out
    assert SAID in said and "another --stop_if" in said and "checkpoint-2 --output MODEL" in said
    assert len([record for record in log(stopped) if "loss" in record]) == 2


def test_it_goes_on_with_another_condition_and_counts_the_steps_before(stopped, argv, capsys):
    assert exit_code(grpo.main, argv(stopped, "--stop_if", "repeated_rows>0.9 for 3", "--save_total_limit",
                                     "1")) == 0
    said = capsys.readouterr().out
    assert "was stopped at step 2; it goes on" in said
    assert f"{stopped}: stopped at step 3 by --stop_if 'repeated_rows>0.9 for 3'" in said
    assert f"saved as {stopped / 'checkpoint-3'}; best checkpoint so far: {stopped / 'checkpoint-2'}" in said
    assert sorted(complete_checkpoints(stopped)) == [2, 3]  # the best stays beside the last
    assert [record["step"] for record in log(stopped) if "loss" in record] == [1, 2, 3]


@pytest.mark.parametrize("flags, words", [
    (["--stop_if", "format"], "'format' is no condition"),
    (["--stop_if", "fromat<0.5"], "this run logs no fromat (did you mean format?)"),
    (["--stop_if", "eval_format<0.5"], "this run does not evaluate"),
    (["--stop_if", "loss>3", "--logging_strategy", "no"], "another --logging_strategy than no")])
def test_a_condition_that_can_never_be_met_is_refused_at_once(argv, tmp_path, capsys, monkeypatch, flags,
                                                              words):
    monkeypatch.setattr("realsr_r1.models.load_policy", lambda *args, **kwargs: pytest.fail("too late"))
    assert exit_code(grpo.main, argv(tmp_path / "run", *flags)) == 2
    complaint = capsys.readouterr().err.strip()
    assert words in complaint and "\n" not in complaint
    assert not (tmp_path / "run").exists()


def test_the_summary_at_the_end_of_a_run_stops_nothing(tmp_path):
    guard, control = StopGuard([Condition("reward", "<", 0.5)]), SimpleNamespace(should_training_stop=False)
    history = [{"step": 1, "train_runtime": 1.0, "reward": 0.1}]  # with --logging_steps above --max_steps
    guard.on_log(SimpleNamespace(output_dir=str(tmp_path)),
                 SimpleNamespace(global_step=1, log_history=history), control)
    assert not control.should_training_stop and guard.met is None


def test_a_checkpoint_is_saved_although_an_evaluation_took_the_save_back(tmp_path):
    guard = StopGuard([Condition("reward", "<", 0.5)])
    args = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=3, log_history=[{"step": 3, "loss": 0.0, "reward": 0.1}])
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    guard.on_log(args, state, control)
    assert control.should_training_stop and control.should_save
    control.should_save = False  # transformers, with --save_strategy best and no new best
    guard.on_epoch_end(args, state, control)
    assert control.should_save
    (tmp_path / "checkpoint-3").mkdir()
    control.should_save = False
    guard.on_epoch_end(args, state, control)
    assert not control.should_save  # it is there already


@pytest.mark.parametrize("name", ["mine", "eval_mine"])
def test_a_name_that_only_a_function_of_ones_own_could_log_is_refused_once_it_is_missing(name, tmp_path):
    guard = StopGuard([Condition(name, "<", 0.5)])
    args = SimpleNamespace(output_dir=str(tmp_path))
    control = SimpleNamespace(should_training_stop=False)
    history = [{"step": 1, "loss": 1.0, "letters": 1.0}]
    if name == "eval_mine":
        guard.on_log(args, SimpleNamespace(global_step=1, log_history=history), control)
        history.append({"step": 1, "eval_loss": 1.0})
    with pytest.raises(UserError, match=f"logs no {name}"):
        guard.on_log(args, SimpleNamespace(global_step=1, log_history=history), control)


def test_the_names_that_are_known_beforehand_are_those_of_a_run(grey_run, processor, tmp_path):
    args = ChainGRPOConfig(output_dir=str(tmp_path), dataset_name="data", report_to="none",
                           eval_strategy="steps", eval_steps=1, num_generations=2)
    logged = {key for record in log(grey_run) if "train_runtime" not in record for key in record} - {"step"}
    assert logged == logged_names(args, REWARDS, processor.chain.names())
