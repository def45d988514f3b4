"""The GPU's kernels, run by Triton's interpreter on the CPU: they write what torch's functions write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_kernels_write_the_same_completions():
    """In a process of its own, for Triton must be imported as an interpreter."""
    worker = Path(__file__).with_name("gpu_attention_worker.py")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib",
                           "-p", "no:cacheprovider", str(worker)], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
