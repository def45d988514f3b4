"""scripts/gpu_check.sh without a GPU: every check is marked as not run, and the tables are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(ROOT / "scripts" / "gpu_check.sh"), *flags], capture_output=True,
                          text=True, env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""})


def test_without_a_gpu_its_checks_are_marked_as_not_run(tmp_path):
    done = check("--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    names = [result["check"] for result in found["checks"]]
    assert {"same_as_cpu", "grpo", "rollout_short", "rollout_full", "loss", "kernels"} <= set(names)
    assert all((result["result"], result["lines"]) == ("not run", ["no GPU"]) for result in found["checks"])
    assert found["machine"]["card"] == "none" and found["machine"]["torch"]
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f"| `{name}` | not run |" in table for name in names)


def test_a_missing_folder_of_wheels_is_one_line(tmp_path):
    done = check("--wheels", str(tmp_path / "none"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--wheels" in done.stderr
