"""What a GPU's first loss needs is asked for at the start, in one line."""

from __future__ import annotations

import sysconfig

import pytest
import torch
from transformers import TrainingArguments

from realsr_r1 import grpo
from realsr_r1.core.devices import triton_compiler
from realsr_r1.core.errors import UserError


def test_without_a_compiler_a_run_on_a_gpu_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    set_up = TrainingArguments.device.fget
    monkeypatch.setattr(TrainingArguments, "device", property(lambda args: set_up(args) and torch.device("cuda")))
    monkeypatch.setattr("realsr_r1.models.load_policy", lambda *args, **kwargs: pytest.fail("too late"))
    with pytest.raises(UserError, match="no C compiler .* apt install gcc"):
        grpo.main(["--model_name_or_path", "tiny", "--dataset_name", str(tmp_path), "--output_dir",
                   str(tmp_path / "run"), "--report_to", "none"])
    assert not (tmp_path / "run").exists()


def test_without_pythons_headers_there_is_no_compiler_for_triton(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    monkeypatch.setattr("shutil.which", lambda name: str(compiler))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="Python.h.*python3-dev"):
        triton_compiler()
    (tmp_path / "Python.h").touch()
    assert triton_compiler() == str(compiler)
