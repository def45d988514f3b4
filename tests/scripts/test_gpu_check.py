"""scripts/gpu_check.sh without a GPU marks every check as not run; and what it says of each check."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ..small import load_script

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


@pytest.mark.parametrize("named", [["none"], []], ids=["a name", "no name"])
def test_a_missing_folder_of_wheels_is_one_line(named):
    done = check("--minutes", "1", "--wheels", *named)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--wheels" in done.stderr


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A function: how a check of this Python code ends, as if there were a GPU."""
    tool = load_script("gpu_check")
    monkeypatch.setattr(tool.torch.cuda, "is_available", lambda: True)
    args = argparse.Namespace(output=tmp_path, rehearse=False)

    def make(code: str, seconds: float = 60, left: float = 100) -> dict:
        verdict = lambda figures: [(f"ratio {figures['ratio']} (below 1)", figures["ratio"] < 1)]  # noqa: E731
        stub = tool.Check("stub", seconds, [sys.executable, "-c", code], verdict=verdict)
        return tool.ended(stub, args, left)

    return make


@pytest.mark.parametrize("code, result, line", [
    ("import json, sys; json.dump({'ratio': 0.5}, open(sys.argv[2], 'w'))", "held", "ratio 0.5 (below 1)"),
    ("import json, sys; json.dump({'ratio': 2}, open(sys.argv[2], 'w'))", "fell short",
     "ratio 2 (below 1) **no**"),
    ("import json, sys; json.dump({}, open(sys.argv[2], 'w'))", "fell short", "no figure 'ratio'"),
    ("print('ready')", "fell short", "it wrote no figures: ready"),
    ("raise SystemExit('a | b')", "fell short", "exit code 1: a / b")])
def test_a_check_holds_or_falls_short_by_its_figures(code, result, line, ended):
    found = ended(code)
    assert (found["result"], found["lines"]) == (result, [line])


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_hangs_is_ended_with_what_it_started(ended, tmp_path):
    code = ("import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; "
            f"time.sleep(60)']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)")
    began = time.monotonic()
    assert ended(code, seconds=2)["result"] == "fell short"
    assert time.monotonic() - began < 30
    child = int((tmp_path / "pid").read_text())
    while is_running(child):
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    assert ended("", seconds=60, left=30)["lines"] == ["30 s left, it takes 60"]
