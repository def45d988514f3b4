"""Only a checkpoint with its marker counts, and there is always one once there was one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.training.checkpoints import (
    best_checkpoint,
    complete_checkpoints,
    newest_checkpoint,
    require_state,
)
from realsr_r1.training.completion import CompletionMarker
from realsr_r1.training.manifest import MARKER


def make_checkpoint(run: Path, step: int, is_complete: bool = True,
                    files: tuple[str, ...] = ("scheduler.pt",)) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", *files, *([MARKER] if is_complete else [])):
        (folder / name).touch()
    return folder


def save(marker: CompletionMarker, run: Path, step: int, args: SimpleNamespace,
         best: Path | None = None) -> None:
    """What transformers' trainer does at a save: the files first, then the callback."""
    make_checkpoint(run, step, is_complete=False)
    state = SimpleNamespace(global_step=step, is_world_process_zero=True,
                            best_model_checkpoint=best and str(best))
    marker.on_save(args, state, None)


@pytest.fixture
def args(tmp_path) -> SimpleNamespace:
    return SimpleNamespace(output_dir=str(tmp_path), save_total_limit=2)


def started(args: SimpleNamespace) -> CompletionMarker:
    marker = CompletionMarker()
    marker.on_train_begin(args, None, None)
    return marker


@pytest.mark.parametrize("folder", ["no such folder", "."])
def test_a_run_that_saved_nothing_has_no_checkpoint(tmp_path, folder):
    assert newest_checkpoint(tmp_path / folder, set_aside=True) is None


def test_the_newest_complete_checkpoint_is_taken_by_number(tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    assert newest_checkpoint(tmp_path, set_aside=True) == tmp_path / "checkpoint-10"


def test_half_written_ones_are_set_aside_with_a_line_each(tmp_path, capsys):
    make_checkpoint(tmp_path, 1)
    for _ in range(2):
        make_checkpoint(tmp_path, 2, is_complete=False)
        assert newest_checkpoint(tmp_path, set_aside=True) == tmp_path / "checkpoint-1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "incomplete-checkpoint-2.0",
                                                                "incomplete-checkpoint-2.1"]
    assert [line.count("half written") for line in capsys.readouterr().out.splitlines()] == [1, 1]


def test_the_other_ranks_leave_them_alone(tmp_path):
    make_checkpoint(tmp_path, 1)
    half = make_checkpoint(tmp_path, 2, is_complete=False)
    assert newest_checkpoint(tmp_path, set_aside=False) == tmp_path / "checkpoint-1"
    assert half.is_dir()


def test_a_checkpoint_of_weights_only_names_the_two_ways_on(tmp_path):
    folder = make_checkpoint(tmp_path, 3, files=())
    with pytest.raises(UserError, match=r"checkpoint-3 holds weights only.*--model_name_or_path "
                                        r".*checkpoint-3.*remove"):
        require_state(folder)


def test_of_adapters_only_the_way_on_is_to_merge_them_first(tmp_path):
    folder = make_checkpoint(tmp_path, 3, files=("adapter_config.json",))
    with pytest.raises(UserError, match=r"export --checkpoint .*checkpoint-3 --output MODEL\), then "
                                        r".*--model_name_or_path MODEL"):
        require_state(folder)


def test_deepspeed_shards_are_an_optimizer_too(tmp_path):
    folder = make_checkpoint(tmp_path, 3, files=())
    (folder / "global_step3").mkdir()
    require_state(folder)


def test_a_save_is_marked(tmp_path, args):
    save(started(args), tmp_path, 1, args)
    assert complete_checkpoints(tmp_path) == {1: tmp_path / "checkpoint-1"}


def test_old_checkpoints_go_when_the_new_one_counts_and_not_before(tmp_path, args):
    marker = started(args)
    assert args.save_total_limit is None  # transformers would delete before the marker is there
    for step in (5, 10, 15):
        save(marker, tmp_path, step, args)
    assert sorted(complete_checkpoints(tmp_path)) == [10, 15]
    assert not (tmp_path / "checkpoint-5").exists()


def test_those_that_were_set_aside_go_when_a_newer_one_counts(tmp_path, args):
    marker = started(args)
    save(marker, tmp_path, 1, args)
    make_checkpoint(tmp_path, 2, is_complete=False)
    newest_checkpoint(tmp_path, set_aside=True)
    assert (tmp_path / "incomplete-checkpoint-2.0").is_dir()
    save(marker, tmp_path, 2, args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_save_of_which_the_trainer_wrote_nothing_marks_nothing(tmp_path, args):
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, best_model_checkpoint=None)
    started(args).on_save(args, state, None)
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_checkpoint_have_the_mode_that_others_have(tmp_path, args):
    make_checkpoint(tmp_path, 1, is_complete=False)
    (tmp_path / "checkpoint-1" / "model.safetensors").chmod(0o600)
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, best_model_checkpoint=None)
    started(args).on_save(args, state, None)
    (tmp_path / "new").touch()
    assert ((tmp_path / "checkpoint-1" / "model.safetensors").stat().st_mode
            == (tmp_path / "new").stat().st_mode)


def test_without_a_limit_all_stay(tmp_path, args):
    args.save_total_limit = None
    marker = started(args)
    for step in (1, 2, 3):
        save(marker, tmp_path, step, args)
    assert sorted(complete_checkpoints(tmp_path)) == [1, 2, 3]


def test_the_best_one_stays(tmp_path, args):
    marker = started(args)
    for step in (1, 2, 3, 4):
        save(marker, tmp_path, step, args, best=tmp_path / "checkpoint-1")
    assert sorted(complete_checkpoints(tmp_path)) == [1, 3, 4]


def test_other_ranks_mark_and_delete_nothing(tmp_path, args):
    make_checkpoint(tmp_path, 1, is_complete=False)
    state = SimpleNamespace(global_step=1, is_world_process_zero=False, best_model_checkpoint=None)
    started(args).on_save(args, state, None)
    assert complete_checkpoints(tmp_path) == {}


def rewards(*values: float | None, name: str = "reward") -> list[dict]:
    return [{"step": step, name: value} for step, value in enumerate(values, 1)]


@pytest.mark.parametrize("records, best", [
    (rewards(1.0, 3.0, 1.0, 0.0), 2),  # means 1, 2, 5/3, 5/4
    (rewards(1.0, 1.0, 1.0, 1.0), 4),  # of equals the latest
    (rewards(None, 1.0, 0.5, 0.0), 2),
    (rewards(1.0, 3.0, 1.0, 0.0) + rewards(0.1, 0.1, 0.4, 0.2, name="eval_reward"), 3),
    ([{"step": 3, "eval_reward": 0.1}, *rewards(1.0, 3.0, 1.0, 0.0)], 3)])  # none of the others is evaluated
def test_the_best_checkpoint_is_that_of_the_best_evaluation_or_else_of_the_best_mean(tmp_path, records, best):
    for step in (1, 2, 3, 4):
        make_checkpoint(tmp_path, step)
    assert best_checkpoint(tmp_path, records).folder == tmp_path / f"checkpoint-{best}"


def test_one_good_step_after_ten_bad_ones_makes_no_best_checkpoint(tmp_path):
    for step in (10, 30):
        make_checkpoint(tmp_path, step)
    assert best_checkpoint(tmp_path, rewards(*[1.0] * 10, *[0.0] * 19, 2.0)).folder.name == "checkpoint-10"


@pytest.mark.parametrize("records", [[], rewards(None), rewards(1.0, name="loss")])
def test_without_a_reward_there_is_no_best_checkpoint(tmp_path, records):
    make_checkpoint(tmp_path, 1)
    assert best_checkpoint(tmp_path, records) is None


def test_the_best_by_its_reward_stays_where_that_is_asked_for(tmp_path, args):
    marker = CompletionMarker(keep_best=True)
    marker.on_train_begin(args, None, None)
    history = rewards(1.0, 3.0, 1.0, 0.0, 0.0)
    for step in (1, 2, 3, 4, 5):
        make_checkpoint(tmp_path, step, is_complete=False)
        marker.on_save(args, SimpleNamespace(global_step=step, is_world_process_zero=True,
                                             best_model_checkpoint=None, log_history=history[:step]), None)
    assert sorted(complete_checkpoints(tmp_path)) == [2, 4, 5]
