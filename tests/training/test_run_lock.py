"""One run at a time writes into a folder, and nobody has to clean up after one that was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.training import run_lock
from realsr_r1.training.run_lock import LOCK_FILE, sole_writer

HOLDER = """
import os, sys, time
from realsr_r1.training.run_lock import sole_writer
with sole_writer(sys.argv[1]):
    if not os.fork():  # what it forks must not keep the lock
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def holder(tmp_path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE,
                               start_new_session=True)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_with_the_first_ones_name(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    said = rf"run is being written by another run: process {holder.pid} on .*since"
    with pytest.raises(UserError, match=said), sole_writer(tmp_path / "run"):
        pass
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    holder.kill()
    with sole_writer(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] != holder.pid


def test_afterwards_nothing_is_left_of_it(tmp_path):
    with pytest.raises(ValueError), sole_writer(tmp_path / "a" / "run"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with sole_writer(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in Path(tmp_path / "run").iterdir()] == ["kept"]
