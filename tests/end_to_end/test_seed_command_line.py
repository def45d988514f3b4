"""The launch line of the released code runs as it is, but for its paths, its port and two
processes.

Its completions may have 7,000 tokens, which a policy that knows nothing would all write. So the
policy here is steered to letters, small images and an early end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from realsr_r1 import grpo
from realsr_r1.core.errors import run as run_entry_point
from realsr_r1.models import load_policy
from realsr_r1.training.manifest import MARKER

from .policies import steered_policy
from .processes import free_port, start

RECORDS, EPOCHS, PROCESSES = 4, 2, 2
STEPS = RECORDS * EPOCHS // PROCESSES  # one prompt a process and step


@dataclass
class SeedRun:
    """The finished run: its flags, its folder, its output, and the folder wandb wrote into."""

    flags: Sequence[str]
    folder: Path
    output: str
    wandb: Path


def seed_flags(output: Path, model: Path, dataset: Path) -> list[str]:
    return ["--output_dir", str(output), "--model_name_or_path", str(model), "--dataset_name", str(dataset),
            "--deepspeed", "local_scripts/zero3.json", "--max_prompt_length", "5000",
            "--max_completion_length", "7000",
            "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--logging_steps",
            "1", "--bf16",
            "--report_to", "wandb", "--gradient_checkpointing", "true", "--attn_implementation",
            "flash_attention_2",
            "--max_pixels", "401408", "--num_train_epochs", str(EPOCHS), "--run_name", "seed", "--save_steps",
            "1",
            "--learning_rate=2e-06", "--save_only_model", "true", "--num_generations", "5"]


@pytest.fixture(scope="module")
def seed_run(dataset, processor, tmp_path_factory) -> SeedRun:
    from realsr_r1 import create_json

    folder = tmp_path_factory.mktemp("seed")
    records = json.loads((dataset / "train.json").read_text())[::4][:RECORDS]
    for record in records:
        record.update(image_path=str(dataset / record["image_path"]),
                      hq_path=str(dataset / record["hq_path"]))
    (folder / "few.json").write_text(json.dumps(records))
    assert not create_json.main(["--json", str(folder / "few.json"), "--images", str(dataset), "--output",
                                 str(folder / "dataset")])
    layout = processor.layout
    letters = {processor.encode_text(letter)[0]: 5.0 for letter in "abcdefgh"}
    model = steered_policy(folder / "model", processor, {
        layout.end_of_turn: 4.5, layout.image_start: 4.0, layout.size_ids[1]: 15.0, **letters})
    flags = seed_flags(folder / "run", model, folder / "dataset")
    run = start([sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={PROCESSES}", "--nnodes=1",
                 "--node_rank=0",
                 "--master_addr=127.0.0.1", f"--master_port={free_port()}", "src/realsr_r1/grpo.py", *flags],
                folder / "log.txt",
                {"WANDB_MODE": None, "WANDB_API_KEY": None, "WANDB_DIR": str(folder), "HOME": str(folder),
                 "DEBUG_MODE": "true", "LOG_PATH": str(folder / "log" / "rewards.txt")})
    assert run.finish() == 0, run.output()[-6000:]
    return SeedRun(flags, folder / "run", run.output(), folder / "wandb")


def test_it_makes_all_its_steps_and_leaves_a_model_folder(seed_run):
    lines = [json.loads(line) for line in (seed_run.folder / "log_history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    for part in (".", *(f"checkpoint-{step}" for step in range(1, STEPS + 1))):
        assert load_policy(seed_run.folder / part).num_parameters() > 0


def test_checkpoints_hold_weights_only(seed_run):
    for step in range(1, STEPS + 1):
        names = {path.name for path in (seed_run.folder / f"checkpoint-{step}").iterdir()}
        assert "model.safetensors" in names
        assert not any(name.startswith(("global_step", "optimizer", "scheduler")) for name in names)


def test_max_pixels_is_noticed_once(seed_run):
    assert seed_run.output.count("--max_pixels 401408 has no effect") == 1


def test_flash_attention_falls_back_with_one_warning_a_process_at_most(seed_run):
    assert seed_run.output.count("flash_attention_2 needs") == 1


def test_wandb_writes_offline_where_there_is_no_key(seed_run):
    assert len(list(seed_run.wandb.glob("offline-run-*/*.wandb"))) == 1


def test_the_text_log_is_where_log_path_says(seed_run):
    log = (seed_run.folder.parent / "log" / "rewards.txt").read_text()
    assert log.count("format 0.0, degradation 0.0, understanding 0.0, generation") == STEPS * PROCESSES * 5


def test_the_same_command_says_that_the_run_is_finished(seed_run, capsys):
    before = sorted(seed_run.folder.rglob("*"))
    assert exit_code(seed_run.flags) == 0
    assert f"{seed_run.folder} holds a finished run already" in capsys.readouterr().out
    assert sorted(seed_run.folder.rglob("*")) == before


def test_a_stopped_run_that_holds_weights_only_names_the_two_ways_on(seed_run, capsys):
    (seed_run.folder / MARKER).unlink()
    assert exit_code(seed_run.flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{seed_run.folder / f'checkpoint-{STEPS}'} holds weights only" in error
    assert "--model_name_or_path" in error and "remove" in error


def exit_code(flags: Sequence[str]) -> int:
    """Return the exit code of the same command, run in this process.

    DeepSpeed is left out, since it needs torchrun's process group.
    """
    flags = [flag for flag in flags if flag not in ("--deepspeed", "local_scripts/zero3.json")]
    with pytest.raises(SystemExit) as exit_info:
        run_entry_point(grpo.main, flags)
    return exit_info.value.code
