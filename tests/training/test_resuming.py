"""A finished run goes on where more is asked, and a checkpoint is loaded only in its own setting."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.training.checkpoints import SETTINGS_FILE
from realsr_r1.training.manifest import MARKER
from realsr_r1.training.resuming import (
    Setting,
    is_more_asked,
    reopen,
    require_checkpoint,
    require_same_setting,
)

ZERO_3 = [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in (0, 1)
          for kind in ("model", "optim")]
ZERO_2 = ["global_step2/mp_rank_00_model_states.pt",
          *(f"global_step2/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1))]
FILES = {"ZeRO-3": ZERO_3, "ZeRO-2": ZERO_2, "ZeRO-0": ["global_step2/mp_rank_00_model_states.pt"],
         "none": ["optimizer.pt", "scheduler.pt"],
         "LoRA": ["optimizer.pt", "scheduler.pt", "adapter_config.json"]}


def checkpoint_of(folder: Path, kind: str) -> Path:
    for name in (*FILES[kind], MARKER):
        (folder / "checkpoint-2" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint-2" / name).touch()
    return folder / "checkpoint-2"


def command(stage: int | None, world_size: int = 2, reset: bool = False) -> SimpleNamespace:
    plugin = None
    if stage is not None:
        plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}})
    return SimpleNamespace(deepspeed_plugin=plugin, world_size=world_size, reset_optimizer=reset)


@pytest.mark.parametrize(("kind", "stage", "world_size", "use_peft"), [
    ("ZeRO-3", 3, 2, False), ("ZeRO-2", 2, 2, False), ("ZeRO-2", 1, 2, False), ("ZeRO-0", 0, 4, False),
    ("none", None, 1, False), ("none", None, 3, False), ("LoRA", None, 1, True)])
def test_the_same_setting_goes_on(kind, stage, world_size, use_peft, tmp_path):
    require_same_setting(checkpoint_of(tmp_path, kind), command(stage, world_size), use_peft)


@pytest.mark.parametrize(("kind", "stage", "world_size", "use_peft", "words"), [
    ("ZeRO-3", None, 1, False, "DeepSpeed ZeRO-3 on 2 processes, and this command has no DeepSpeed"),
    ("ZeRO-3", 2, 2, False, "this command has DeepSpeed ZeRO-1 or 2 on 2 processes"),
    ("ZeRO-3", 3, 1, False, "this command has DeepSpeed ZeRO-3 on 1 process:"),
    ("ZeRO-2", 2, 4, False, "on 4 processes"), ("ZeRO-2", 0, 2, False, "DeepSpeed without ZeRO"),
    ("none", 3, 2, False, "made with no DeepSpeed"), ("none", None, 1, True, "no DeepSpeed and LoRA"),
    ("LoRA", None, 1, False, "made with no DeepSpeed and LoRA")])
def test_another_setting_is_refused_with_what_it_was_made_with_and_the_way_on(
        kind, stage, world_size, use_peft, words, tmp_path):
    with pytest.raises(UserError) as refused:
        require_same_setting(checkpoint_of(tmp_path, kind), command(stage, world_size), use_peft)
    assert words in str(refused.value) and "realsr-r1 export --checkpoint" in str(refused.value)
    assert Setting.of_command(command(stage, world_size), use_peft) != Setting.of_checkpoint(
        tmp_path / "checkpoint-2")


@pytest.mark.parametrize(("kind", "stage", "world_size"), [
    ("ZeRO-3", None, 1), ("ZeRO-3", 3, 1), ("none", 3, 2), ("ZeRO-2", 3, 4)])
def test_with_a_new_optimizer_it_goes_on_in_another_setting(kind, stage, world_size, tmp_path):
    require_same_setting(checkpoint_of(tmp_path, kind), command(stage, world_size, reset=True), False)


@pytest.mark.parametrize(("kind", "use_peft"), [("none", True), ("LoRA", False), ("LoRA", True)])
def test_but_not_with_adapters(kind, use_peft, tmp_path):
    with pytest.raises(UserError, match="--reset_optimizer is not for adapters.*realsr-r1 export"):
        require_same_setting(checkpoint_of(tmp_path, kind), command(None, 1, reset=True), use_peft)


def finished(folder: Path, steps: int, epochs: float) -> Path:
    (folder / SETTINGS_FILE).write_text(json.dumps({"max_steps": steps, "num_train_epochs": epochs}))
    checkpoint = checkpoint_of(folder, "none")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 4, "epoch": 0.5}))
    (folder / MARKER).touch()
    return folder


@pytest.mark.parametrize(("before", "now", "more"), [
    ((4, 3.0), (8, 3.0), True), ((4, 3.0), (4, 9.0), False), ((4, 3.0), (2, 3.0), False),
    ((-1, 2.0), (-1, 3.0), True), ((-1, 2.0), (-1, 2.0), False), ((-1, 0.5), (5, 0.5), True),
    ((-1, 0.5), (4, 9.0), False), ((4, 3.0), (-1, 1.0), True), ((4, 3.0), (-1, 0.5), False)])
def test_more_is_what_the_run_was_not_asked_before(before, now, more, tmp_path):
    args = SimpleNamespace(max_steps=now[0], num_train_epochs=now[1])
    assert is_more_asked(finished(tmp_path, *before), args) == more


def test_a_finished_run_goes_on_from_its_checkpoint_or_names_the_way(tmp_path):
    assert "going on from checkpoint-2" in require_checkpoint(finished(tmp_path, 4, 1))
    reopen(tmp_path)
    assert not (tmp_path / MARKER).exists()
    (tmp_path / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(UserError, match="weights only"):
        require_checkpoint(tmp_path)
    (tmp_path / "checkpoint-2" / MARKER).unlink()
    with pytest.raises(UserError, match="--save_strategy no.*--model_name_or_path"):
        require_checkpoint(tmp_path)


def test_a_folder_without_settings_is_asked_nothing_more(tmp_path):
    assert not is_more_asked(tmp_path, SimpleNamespace(max_steps=100, num_train_epochs=3))
