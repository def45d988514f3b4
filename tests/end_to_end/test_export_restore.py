"""An exported model folder is all that `restore` needs, wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from realsr_r1 import export, restore
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.errors import UserError
from realsr_r1.core.errors import run as run_entry_point
from realsr_r1.models import load_policy
from realsr_r1.training.manifest import MARKER
from realsr_r1.training.trained_policy import find_weights

FLAGS = ["--max_text_tokens", "6", "--max_new_tokens", "400", "--guidance_scale", "1", "--color_fix", "none"]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """The folder that `export` made of a finished run, moved to another place."""
    made = tmp_path_factory.mktemp("made") / "model"
    export.main(["--checkpoint", str(trained.folder), "--output", str(made)])
    return Path(shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "copy"))


@pytest.fixture(scope="module")
def lq_photos(photos_dir, tmp_path_factory) -> Path:
    """Two photos, one of them wide."""
    folder = tmp_path_factory.mktemp("lq")
    for name, size in (("coffee", (96, 96)), ("rocket", (160, 64))):
        with Image.open(photos_dir / f"{name}.png") as photo:
            photo.resize(size).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def restored(exported, lq_photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restored")
    assert not restore.main(["--model", str(exported), "--input", str(lq_photos), "--output", str(folder),
                             *FLAGS])
    return folder


def test_the_copy_holds_the_trained_weights_and_names_no_other_folder(exported, trained):
    weights = trained.weights("step-2", 0)
    for name, parameter in load_policy(exported).named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-6)
    for file in exported.rglob("*.json"):
        assert str(trained.folder.parent) not in file.read_text(encoding="utf-8"), file


def test_restore_needs_nothing_but_the_copied_folder(restored, lq_photos):
    assert sorted(path.name for path in restored.iterdir()) == ["chains", "coffee.png", "rocket.png"]
    for name in ("coffee", "rocket"):
        chain = restored / "chains" / name
        assert parse_chain((chain / "chain.txt").read_text(encoding="utf-8")).is_well_formed
        images = {part: Image.open(chain / f"{part}.png") for part in ("lq", "rough", "middle", "final")}
        assert images["rough"].width < images["middle"].width < images["final"].width
        assert images["final"].size == images["lq"].size
        assert Image.open(restored / f"{name}.png").tobytes() == images["final"].tobytes()


def test_restoring_again_is_no_work(exported, restored, lq_photos, capsys):
    before = {path: path.stat().st_mtime_ns for path in restored.rglob("*.png")}
    assert not restore.main(["--model", str(exported), "--input", str(lq_photos), "--output", str(restored),
                             *FLAGS])
    assert "2 of 2 photos are restored" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in restored.rglob("*.png")} == before


def test_an_export_of_what_has_changed_is_not_up_to_date(small_model, tmp_path):
    source = shutil.copytree(small_model, tmp_path / "source")
    command = ["--checkpoint", str(source), "--output", str(tmp_path / "model")]
    export.main(command)
    settings = json.loads((source / "chain_settings.json").read_text())
    (source / "chain_settings.json").write_text(json.dumps({**settings, "fidelity": 0.7}))
    with pytest.raises(UserError, match="exists and is not empty"):
        export.main(command)


def test_the_same_export_again_is_no_work(small_model, tmp_path, capsys):
    command = ["--checkpoint", str(small_model), "--output", str(tmp_path / "model"), "--dtype", "float16"]
    export.main(command)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    export.main(command)
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


@pytest.mark.parametrize("change", [["--dtype", "bfloat16"], ["--layout", "lumina"],
                                    ["--sampling", "seed=1"]])
def test_another_export_into_the_same_folder_is_refused(small_model, tmp_path, change):
    command = ["--checkpoint", str(small_model), "--output", str(tmp_path / "model")]
    export.main(command)
    with pytest.raises(UserError, match="not empty"):
        export.main([*command, *change])


def test_sampling_settings_go_into_the_folder_over_those_it_had(small_model, processor, tmp_path):
    export.main(["--checkpoint", str(small_model), "--output", str(tmp_path / "model"), "--sampling",
                 "temperature=5e-1",
                 "image_top_k_max=100"])
    assert ChainProcessor.from_pretrained(tmp_path / "model").settings.sampling == {
        **processor.settings.sampling, "temperature": 0.5, "image_top_k_max": 100}


@pytest.mark.parametrize("assignment", ["heat=1", "temperature", "temperature=warm", "temperature=-1",
                                        "text_top_k=1.5",
                                        "image_sizes=[["])
def test_a_bad_sampling_setting_is_one_line_and_writes_nothing(small_model, tmp_path, assignment, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_entry_point(export.main, ["--checkpoint", str(small_model), "--output", str(tmp_path / "model"),
                                      "--sampling", assignment])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("realsr-r1: error: ")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_that_holds_zero_shards_only_is_put_together(trained, tmp_path):
    shutil.copytree(trained.folder / "checkpoint-2", tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    export.main(["--checkpoint", str(tmp_path / "shards"), "--output", str(tmp_path / "model")])
    weights = trained.weights("step-2", 0)
    for name, parameter in load_policy(tmp_path / "model").named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-6)


class Harmful:
    """Makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_shard_that_would_run_code_is_refused_unrun(trained, tmp_path):
    shutil.copytree(trained.folder / "checkpoint-2", tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    shard = next((tmp_path / "shards").glob("global_step*/*_1_*model_states.pt"))
    torch.save({"module": Harmful(tmp_path / "ran")}, shard)
    with pytest.raises(UserError, match=rf"{shard.name} is not what DeepSpeed writes.*could run code"):
        export.main(["--checkpoint", str(tmp_path / "shards"), "--output", str(tmp_path / "model")])
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


def test_of_a_stopped_run_the_newest_complete_checkpoint_is_taken(tmp_path):
    for name, is_complete in (("checkpoint-2", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        if is_complete:
            (tmp_path / name / MARKER).touch()
    assert find_weights(tmp_path) == tmp_path / "checkpoint-10"


def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match="complete checkpoint"):
        find_weights(tmp_path)
