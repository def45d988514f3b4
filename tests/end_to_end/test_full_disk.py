"""A disk that runs full while a run or an export saves: one line, exit code 2, and the same command
goes on later.

The disk is a small tmpfs, which only root can mount.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from realsr_r1 import export, grpo
from realsr_r1.core.errors import run
from realsr_r1.models import load_policy
from realsr_r1.training.checkpoints import complete_checkpoints

Resize = Callable[[str], None]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, Resize]]:
    """A folder on a disk of 2 MB, and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs",
                                                    folder]).returncode == 0
    if not mounted:
        pytest.skip("mounting a small disk takes root's rights")
    yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def complaint(main: Callable[[list[str]], None], flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as exit_info:
        run(main, flags)
    assert exit_info.value.code == 2
    lines = re.split("[\r\n]+", capsys.readouterr().err)  # a progress bar's among them
    (line,) = [line for line in lines if "error" in line]
    assert line.startswith("realsr-r1: error: ")
    return line


def test_an_export_leaves_nothing(small_disk, small_model, capsys):
    disk, _ = small_disk
    line = complaint(export.main, ["--checkpoint", str(small_model), "--output", str(disk / "model")], capsys)
    assert "disk is full" in line
    assert not list(disk.iterdir())


@pytest.mark.parametrize("megabytes", [5, 22])
def test_a_half_written_checkpoint_does_not_count_and_the_same_command_goes_on(small_disk, dataset,
                                                                               small_model, megabytes,
                                                                               capsys):
    """With 5 MB the model doesn't fit, with 22 MB its optimizer doesn't."""
    disk, resize = small_disk
    resize(f"{megabytes}m")
    flags = ["--output_dir", str(disk / "run"), "--model_name_or_path", str(small_model), "--dataset_name",
             str(dataset),
             "--reward_funcs", "format", "--grammar", "chain", "--max_text_tokens", "2",
             "--max_completion_length", "350",
             "--num_generations", "2", "--guidance_scale", "1", "--max_steps", "1", "--save_steps", "1",
             "--sample_steps", "0",
             "--report_to", "none", "--max_samples", "2"]
    assert "disk is full" in complaint(grpo.main, flags, capsys)
    assert complete_checkpoints(disk / "run") == {}
    resize("128m")
    with pytest.raises(SystemExit) as exit_info:
        run(grpo.main, flags)
    assert exit_info.value.code == 0
    assert "half written" in capsys.readouterr().out
    assert not list((disk / "run").glob("incomplete-*"))  # nobody needs it any more
    assert list(complete_checkpoints(disk / "run")) == [1]
    assert load_policy(disk / "run").num_parameters() > 0
