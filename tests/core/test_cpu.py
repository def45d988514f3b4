"""A process on a machine without a GPU suits itself, the same from every command and from Python."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from realsr_r1.core.cpu import SMALL_POLICY, cores

CODE = """
import os, torch
from realsr_r1.core.cpu import suit_cpu
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
suit_cpu({parameters})
before = resident()
for _ in range(2):
    block = torch.ones(100 * 2**20, dtype=torch.uint8); del block
print(torch.get_num_threads(), os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], resident() - before > 50 * 2**20)
"""


def settings(parameters: int, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "MKL", "MALLOC"))}
    done = subprocess.run([sys.executable, "-c", CODE.format(parameters=parameters)], check=True, text=True,
                          capture_output=True, env=environment | variables)
    return done.stdout.split()


def test_a_small_model_computes_with_one_thread_and_keeps_its_memory():
    assert settings(7_000_000) == ["1", "256", "True"]


def test_what_the_user_set_stays():
    assert settings(7_000_000, OMP_NUM_THREADS="2", ONEDNN_PRIMITIVE_CACHE_CAPACITY="64",
                    MALLOC_MMAP_MAX_="65536", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_TOP_PAD_="0") == [
        "2", "64", "False"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one thread")
def test_a_large_model_has_all_cores():
    assert int(settings(SMALL_POLICY)[0]) > 1


@pytest.mark.parametrize("text, count", [("3", 3), ("", None), ("many", None)])
def test_the_number_of_threads_is_the_users_or_that_of_the_cores(monkeypatch, text, count):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cores() == (count or len(os.sched_getaffinity(0)))
