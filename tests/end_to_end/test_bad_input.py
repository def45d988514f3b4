"""Bad input to `realsr-r1 grpo`: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from realsr_r1 import grpo
from realsr_r1.core.errors import run


@pytest.fixture
def flags(dataset, small_model, tmp_path) -> dict[str, str | None]:
    """Flags of a run that would work."""
    return {"--output_dir": str(tmp_path / "run"), "--model_name_or_path": str(small_model),
            "--dataset_name": str(dataset),
            "--reward_funcs": "format", "--report_to": "none"}


def complaint(flags: dict[str, str | None], capsys: pytest.CaptureFixture[str],
              leaves: Sequence[str] = ()) -> str:
    """Run `grpo`, check how it ends, and return its one line."""
    with pytest.raises(SystemExit) as exit_info:
        run(grpo.main, [word for flag, value in flags.items() if value is not None for word in (flag, value)])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("realsr-r1: error: ")]
    assert len(lines) == 1 and error.strip().endswith(lines[0])
    output = Path(flags["--output_dir"])
    assert sorted(path.name for path in output.iterdir()) == list(leaves) if leaves else not output.exists()
    return lines[0].removeprefix("realsr-r1: error: ")


@pytest.mark.parametrize("changes, parts", [
    ({"--model_name_or_path": "no/such"}, ["no such model folder: no/such"]),
    ({"--model_name_or_path": None}, ["--model_name_or_path"]),
    ({"--dataset_name": "no/such"}, ["no such dataset folder: no/such"]),
    ({"--dataset_name": None}, ["--dataset_name"]),
    ({"--dataset_train_split": "validation"}, ["'validation'", "train, test"]),
    ({"--num_generations": "1"}, ["--num_generations 1", "at least 2"]),
    ({"--loss_batch_size": "0"}, ["--loss_batch_size 0", "at least 1"]),
    ({"--reward_funcs": "beauty"}, ["'beauty'", "format, degradation, understanding, generation"]),
    ({"--reward_funcs": "no_such_module:reward"}, ["no_such_module"]),
    ({"--reward_funcs": "generation", "--experts": "eye"}, ["'eye'", "piqe"]),
    ({"--reward_weights": "1,2"}, ["reward_weights"]),
    ({"--grammar": "free"}, ["--grammar", "free", "image", "chain"]),
    ({"--rollout_temperature": "0"}, ["temperature"]),
    ({"--learning_rate": "fast"}, ["--learning_rate", "fast"]),
    ({"--lerning_rate": "1"}, ["--lerning_rate"]),
    ({"--config": "no/such.yaml"}, ["no such file: no/such.yaml", "--config"]),
    ({"--deepspeed": "no/such.json"}, ["no/such.json"]),
], ids=lambda value: " ".join(f"{flag}={text}" for flag, text in value.items()) if isinstance(value,
                                                                                              dict) else "")
def test_a_bad_flag_is_named_with_the_way_out(flags, changes, parts, capsys):
    line = complaint({**flags, **changes}, capsys)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("text, parts", [
    ("learning_rate: [1", ["recipe.yaml", "not valid YAML"]),
    ("- format\n- degradation\n", ["recipe.yaml", "key: value"]),
    ("", ["recipe.yaml", "key: value"]),
    ("learning_rte: 1.0e-4\n", ["recipe.yaml", "'learning_rte'", "--help"]),
    ("grammar: free\n", ["grammar", "'free'", "'image', 'chain'"]),
    ("num_generations: 1\n", ["--num_generations 1"]),
], ids=["broken", "list", "empty", "unknown key", "bad choice", "bad value"])
def test_a_bad_config_file_is_named_with_its_fault(flags, text, parts, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    line = complaint({"--config": str(config), **flags}, capsys)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("missing", ["image_tokenizer", "tokenizer.json", "chain_settings.json",
                                     "config.json",
                                     "model.safetensors"])
def test_a_model_folder_without_one_of_its_parts_is_refused(flags, missing, small_model, tmp_path, capsys):
    shutil.copytree(small_model, tmp_path / "model", ignore=shutil.ignore_patterns(missing))
    if missing in ("config.json", "model.safetensors"):  # the image tokenizer's own
        shutil.copytree(small_model / "image_tokenizer", tmp_path / "model" / "image_tokenizer",
                        dirs_exist_ok=True)
    assert missing in complaint({**flags, "--model_name_or_path": str(tmp_path / "model")}, capsys)


@pytest.mark.parametrize("reward, column", [("degradation", "degradation"), ("generation", "hq")])
def test_a_dataset_without_a_column_that_a_reward_needs_is_refused(flags, reward, column, seed_form, capsys):
    line = complaint({**flags, "--dataset_name": str(seed_form), "--reward_funcs": reward,
                      "--experts": "ssim"}, capsys)
    assert reward in line and column in line


@pytest.fixture(scope="module")
def seed_form(dataset, tmp_path_factory) -> Path:
    """A dataset as the released script makes it: image, problem and tag only."""
    from realsr_r1 import create_json

    folder = tmp_path_factory.mktemp("seed_form")
    records = [{"image_path": str(dataset / record["image_path"]), "problem": record["problem"],
                "tag": record["tag"]}
               for record in json.loads((dataset / "train.json").read_text())[:2]]
    (folder / "list.json").write_text(json.dumps(records))
    assert not create_json.main(["--json", str(folder / "list.json"), "--images", str(dataset),
                                 "--output", str(folder / "dataset")])
    return folder / "dataset"


def test_an_empty_dataset_folder_is_refused(flags, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in complaint({**flags, "--dataset_name": str(tmp_path / "empty")}, capsys)


def test_a_prompt_that_is_too_long_is_refused(flags, capsys):
    line = complaint({**flags, "--max_prompt_length": "20"}, capsys, leaves=["prompts"])
    assert "--max_prompt_length 20" in line and "tokens" in line
