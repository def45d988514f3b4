"""A rank that doesn't get on ends the run, and is named with its phase."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realsr_r1.training.watchdog import Watchdog

# A rank that goes through `phases`, each NAME or NAME=SECONDS, and waits for the others in the end.
RANK = """
import sys, time
from realsr_r1.training.watchdog import Watchdog
folder, rank, ranks, *phases = sys.argv[1:]
watchdog = Watchdog(folder, int(rank), int(ranks), 3.0, lambda: "the way on")
with watchdog.running():
    print("ready", flush=True)
    for phase in phases:
        name, _, seconds = phase.partition("=")
        with watchdog.phase(name):
            time.sleep(float(seconds or 0))
    time.sleep(20)
"""


@pytest.fixture
def start(tmp_path):
    ranks: list[subprocess.Popen] = []

    def make(rank: int, of: int, *phases: str) -> subprocess.Popen:
        command = [sys.executable, "-c", RANK, str(tmp_path), str(rank), str(of), *phases]
        ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert ranks[-1].stdout.readline() == "ready\n"
        return ranks[-1]
    yield make
    for process in ranks:
        process.kill()
        process.communicate()


def test_a_rank_whose_reward_never_returns_says_so_and_another_one_is_not_blamed(start):
    waiting, stuck = start(0, 2, "rollout", "reward mine"), start(1, 2, "rollout", "reward mine=20")
    assert stuck.wait(10) == 1 and waiting.wait(10) == 1
    (line,) = stuck.stderr.read().splitlines()
    assert "rank 1 has been in the phase reward mine for 3 s" in line and line.endswith("the way on")
    assert waiting.stderr.read() == ""


def test_a_rank_that_was_stopped_is_named_by_another(start, tmp_path):
    alive, stopped = start(0, 2, "rollout", "loss"), start(1, 2, "rollout=20")
    while not (tmp_path / ".ranks" / "1.json").exists() or "rollout" not in (
            tmp_path / ".ranks" / "1.json").read_text():
        time.sleep(0.01)
    stopped.send_signal(signal.SIGSTOP)
    assert alive.wait(10) == 1
    (line,) = alive.stderr.read().splitlines()
    assert "rank 1 has given no sign of life" in line and "last in the phase rollout" in line


def test_a_rank_that_gets_on_is_left_alone(tmp_path):
    watchdog = Watchdog(tmp_path, 0, 2, 0.4, lambda: "")
    with watchdog.running():
        for _ in range(4):
            with watchdog.phase("rollout"):
                time.sleep(0.2)
    assert list(Path(tmp_path).iterdir()) == []
