"""What a GPU's first loss needs is asked for at the start, in one line."""

from __future__ import annotations

import sysconfig

import pytest
import torch

from realsr_r1.core.devices import triton_compiler
from realsr_r1.core.errors import UserError
from realsr_r1.training.launch import prepare_process


def test_without_a_compiler_or_pythons_headers_a_run_on_a_gpu_is_refused_at_once(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")
    monkeypatch.setattr("shutil.which", lambda name: None)
    prepare_process(args)  # on a CPU nothing is compiled
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args.use_cpu = False
    with pytest.raises(UserError, match="no C compiler .* apt install gcc"):
        prepare_process(args)
    compiler = tmp_path / "cc"
    monkeypatch.setattr("shutil.which", lambda name: str(compiler))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="Python.h.*python3-dev"):
        triton_compiler()
    (tmp_path / "Python.h").touch()
    assert triton_compiler() == str(compiler)
