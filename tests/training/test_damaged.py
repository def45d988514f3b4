"""A run goes on from the newest checkpoint that is as it was written, and runs no file of any."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.training.manifest import MARKER, files_of, hashed, is_whole, mark
from realsr_r1.training.resuming import checkpoint_to_go_on_from

FILES = {"model.safetensors": b"weights" * 90, "trainer_state.json": b"{}", "latest": b"global_step1",
         "scheduler.pt": b"a scheduler", "rng_state.pth": b"numbers", "image_tokenizer/config.json": b"{}"}


def make_checkpoint(run: Path, step: int) -> Path:
    """A complete checkpoint with shards as DeepSpeed writes them."""
    folder = run / f"checkpoint-{step}"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "global_step1").mkdir()
    torch.save({"module": torch.ones(3)}, folder / "global_step1" / "mp_rank_00_model_states.pt")
    mark(folder, hashed(folder, files_of(folder)))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    for step in (1, 2):
        make_checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


def found(run: Path, trust: bool = False) -> str | None:
    args = SimpleNamespace(process_index=0, world_size=1, trust_checkpoint=trust)
    checkpoint = checkpoint_to_go_on_from(run, args)
    return checkpoint and checkpoint.name


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"zeroed": bytes(size), "truncated": path.read_bytes()[:size // 2], "empty": b"",
                          "random": random.Random(0).randbytes(size)}[how])


@pytest.mark.parametrize("how", ["zeroed", "truncated", "empty", "missing", "random"])
def test_any_damage_to_any_file_of_the_newest_leads_to_the_one_before(how, run, capsys):
    for name in [*files_of(run / "checkpoint-2"), MARKER]:
        copy = shutil.copytree(run, run.with_name("copy"))
        damage(copy / "checkpoint-2" / name, how)
        assert found(copy) == "checkpoint-1", name
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "checkpoint" in line]
        assert "checkpoint-2 " in line and "set aside as incomplete-checkpoint-2.0" in line
        assert not (copy / "checkpoint-2").exists()
        shutil.rmtree(copy)


def test_whole_checkpoints_are_left_alone(run, capsys):
    assert found(run) == "checkpoint-2" and "checkpoint" not in capsys.readouterr().out


def test_where_all_are_damaged_the_run_does_not_begin_again_by_itself(run):
    for step in (1, 2):
        damage(run / f"checkpoint-{step}" / "latest", "empty")
    with pytest.raises(UserError, match="no checkpoint that isn't damaged.*another --output_dir"):
        found(run)


class Poison:
    """Makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_is_refused_by_name(protocol, run, tmp_path):
    file = run / "checkpoint-2" / "global_step1" / "mp_rank_00_model_states.pt"
    torch.save({"module": Poison(tmp_path / "ran")}, file, pickle_protocol=protocol)
    mark(run / "checkpoint-2", hashed(run / "checkpoint-2", files_of(run / "checkpoint-2")))  # forged
    with pytest.raises(UserError, match=rf"{file.name} is not what DeepSpeed writes.*--trust_checkpoint"):
        found(run)
    assert not (tmp_path / "ran").exists()
    assert found(run, trust=True) == "checkpoint-2"


def test_neither_is_one_of_another_form_nor_one_that_was_put_there(run, tmp_path):
    folder = run / "checkpoint-2" / "global_step1"
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(pickle.dumps(Poison(tmp_path / "ran")))
    with pytest.raises(UserError, match="optim_states.pt is not among the files"):
        found(run)
    mark(folder.parent, hashed(folder.parent, files_of(folder.parent)))
    with pytest.raises(UserError, match="is not what DeepSpeed writes"):
        found(run)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_hashes_is_refused_unless_it_is_trusted(run):
    (run / "checkpoint-2" / MARKER).write_text("everything that belongs into this folder is written\n")
    with pytest.raises(UserError, match="no hashes.*--trust_checkpoint"):
        found(run)
    assert found(run, trust=True) == "checkpoint-2"


@pytest.mark.parametrize("how", ["zeroed", "truncated", "empty", "missing", "random"])
def test_damaged_prompts_are_made_again(how, dataset, processor, tmp_path):
    from realsr_r1.training.grpo.prompts import load_prompts

    def load() -> list[list[int]]:
        return load_prompts(str(dataset), "train", processor, {}, tmp_path, 5000)["prompt"][:]

    before = load()
    (folder,) = tmp_path.iterdir()
    damage(next(folder.glob("*.arrow")), how)
    assert not is_whole(folder)
    assert load() == before and is_whole(folder)
