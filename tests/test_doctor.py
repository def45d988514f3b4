"""What `realsr-r1 doctor` promises: a line for each check, and exit code 2 where something is missing."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
import safetensors.torch
import torch

from realsr_r1 import doctor
from realsr_r1.inspecting import machine

from .small import exit_code, write_dataset


def lines_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()  # what fixtures have shown
    code = exit_code(doctor.main, argv)
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == (code == 2)
    return code, shown.out.splitlines()


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_whole_machine_and_whole_folders_are_lines_and_exit_code_0(tiny_model, tmp_path, capsys):
    dataset = write_dataset(tmp_path / "dataset", train=2, test=1)
    code, lines = lines_of([str(tiny_model), str(dataset), "--experts", "ssim", "piqe"], capsys)
    assert code == 0 and lines[-1].endswith("no fault")
    for name in ("realsr-r1", "python", "machine", "packages", "disk", "ports", "gpu", "tokenizers", "policy",
                 "dataset", "expert"):
        assert any(line.split()[1] == name and line.split()[0] in ("ok", "note") for line in lines), name
    assert "train 2, test_crops 1 records" in "\n".join(lines)


def nan_weights(folder):
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    file.unlink()
    safetensors.torch.save_file(tensors, file)


def changed(name, key, value):
    def change(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, key: value}))
    return change


@pytest.mark.parametrize(("damage", "said"), [
    (nan_weights, "policy .*tensor model.norm.weight holds values that are no finite numbers"),
    (changed("config.json", "num_hidden_layers", 10**6), "policy .*1000000 layers"),
    (changed("config.json", "num_hidden_layers", 7), "policy .*tensor model.layers.6.* is missing"),
    (changed("chain_settings.json", "sampling", {"temperature": "hot"}), "tokenizers .*temperature is 'hot'"),
    (changed("image_tokenizer/config.json", "base_channels", 10**9), "tokenizers .*base_channels"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizers .*can't be read"),
    (changed("tokenizer_config.json", "model_max_length", "long"), "tokenizers .*can't be read"),
    (lambda folder: (folder / "generation_config.json").write_text(""), "policy .*not valid JSON"),
    (changed("generation_config.json", "output_hidden_states", True), "policy .*correct it, or remove it"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "policy .*can't be read as safetensors"),
])
def test_what_is_wrong_with_a_model_folder_is_one_line_and_exit_code_2(damage, said, model, capsys):
    damage(model)
    code, lines = lines_of([str(model)], capsys)
    faults = [line for line in lines if line.startswith("FAULT")]
    assert code == 2 and len(faults) == 1
    assert re.search(said, faults[0]), faults[0]


def test_a_checkpoint_counts_only_complete_and_a_half_written_one_is_noted(model, tmp_path, capsys):
    run = tmp_path / "run"
    checkpoint = shutil.copytree(model, run / "checkpoint-2")
    (run / "log_history.jsonl").write_text('{"step": 2, "loss": 0.5}\n')
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    code, lines = lines_of([str(run)], capsys)
    assert code == 0 and any(re.match("note .*half written: checkpoint-2", line) for line in lines)
    assert lines_of([str(checkpoint)], capsys)[0] == 2
    (checkpoint / "complete").touch()
    code, lines = lines_of([str(run)], capsys)
    assert code == 0 and any("checkpoint-2: complete" in line for line in lines)
    nan_weights(checkpoint)
    assert lines_of([str(run)], capsys)[0] == 2


def test_folders_that_are_nothing_known_and_weights_that_are_missing_are_faults(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    code, lines = lines_of([str(tmp_path / "gone"), str(tmp_path / "other"), "--experts", "musiq",
                            "--expert_weights", str(tmp_path)], capsys)
    assert code == 2
    assert [line.split()[1] for line in lines if line.startswith("FAULT")] == ["folder", "folder", "expert"]


def test_a_full_disk_a_taken_port_and_an_absent_compiler_are_said(monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(1, 1, 5 * 2**20))
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        code, lines = lines_of([], capsys)
    assert any(re.match(rf"note .*{port} \(MASTER_PORT\)", line) for line in lines)
    assert code == 2
    assert {line.split()[1] for line in lines if line.startswith("FAULT")} == {"disk", "compiler"}


def test_the_quick_checks_are_said_before_anything_heavy_is_imported():
    code = ("import sys\nfrom realsr_r1.inspecting.machine import machine\n"
            "for finding in machine([]):\n    if finding.name == 'ports': break\n"
            "print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
