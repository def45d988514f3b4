"""A launch ends as a user would want it to: the right code, one line, no rank left, ports as asked."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from realsr_r1.training.launcher import suit_gpus

from ..end_to_end.processes import ROOT, Run, start

# What the ranks do: its arguments are pairs of a rank and a deed.
RANKS = """
import os, signal, sys, time
from realsr_r1.core.errors import UserError, run
from realsr_r1.training.signals import StopSignals, exit_code
def main(argv):
    rank = os.environ["RANK"]
    deeds = sys.argv[1:]
    deed = dict(zip(deeds[::2], deeds[1::2])).get(rank, "wait")
    if deed == "kill":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "bad":
        raise UserError("bad input")
    print(f"ready {rank} {os.getpid()}\\n", end="", flush=True)  # one write, for ranks share the pipe
    if deed == "lose":
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    if deed == "crash":
        raise ValueError("a fault of ours")
    if deed == "listen":
        import torch.distributed
        torch.distributed.init_process_group("gloo")
        print("joined\\n", end="", flush=True)
    signals = StopSignals()
    if deed in ("note", "listen"):
        with signals.noted():
            print("noting\\n", end="", flush=True)
            while not signals.received:
                time.sleep(0.05)
            return exit_code(signals.received)
    time.sleep(60)
run(main)
"""


@pytest.fixture
def launch(tmp_path):
    runs: list[Run] = []

    def make(*deeds: str, port: str = "auto", output: Path | None = None, more: tuple[str, ...] = ()) -> Run:
        (tmp_path / "ranks.py").write_text(RANKS)
        command = [sys.executable, str(ROOT / "scripts" / "tools" / "torchrun.py"), "--nproc_per_node=2",
                   "--nnodes=1", "--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}", *more,
                   str(tmp_path / "ranks.py"), *deeds, *(["--output_dir", str(output)] if output else [])]
        runs.append(start(command, tmp_path / f"log-{len(runs)}.txt",
                          {"TMPDIR": str(tmp_path)}))
        return runs[-1]
    yield make
    for run in runs:
        run.end()


def ranks_of(run: Run) -> list[int]:
    run.wait_for(lambda: run.output().count("ready ") == 2)
    return [int(line.split()[2]) for line in run.output().splitlines() if line.startswith("ready")]


def errors_of(run: Run) -> list[str]:
    return [line for line in run.output().splitlines()
            if line and not line.startswith(("ready", "noting", "joined"))]


def test_a_killed_rank_is_named_with_the_way_on_and_survivors_are_silent(launch, tmp_path):
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-4" / "complete").touch()
    run = launch("1", "kill", "0", "lose", output=tmp_path / "run")
    other = launch("1", "kill", output=tmp_path / "run")
    assert other.finish() == 128 + signal.SIGKILL
    assert errors_of(other) == ["realsr-r1: error: rank 1 was killed by signal 9 (out of memory?); run the "
                                "same command again to go on from step 4"]
    assert run.finish() == 75 and len(errors_of(run)) == 1  # it lost the connection first


@pytest.mark.parametrize(("deed", "code", "lines"), [("bad", 2, 1), ("crash", 1, None)])
def test_what_a_rank_has_said_is_left_to_it(deed, code, lines, launch, tmp_path):
    run = launch("0", deed)
    assert run.finish() == code
    assert lines is None or len(errors_of(run)) == lines
    assert "realsr_r1/training/launcher" not in run.output()
    assert list(tmp_path.glob("torchelastic_*")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_ranks_which_end_in_their_own_way(number, code, launch):
    run = launch("0", "note", "1", "note")
    run.wait_for(lambda: run.output().count("noting") == 2)
    run.process.send_signal(number)
    assert run.finish(20) == code and errors_of(run) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_they_train_it_ends_them_with_one_line(number, code, launch):
    run = launch()
    ranks_of(run)
    run.process.send_signal(number)
    assert run.finish(20) == code
    (line,) = errors_of(run)
    assert f"ended by {number.name} before it trained" in line


def test_no_rank_outlives_its_launcher(launch):
    run = launch("0", "note")
    pids = ranks_of(run)
    run.kill()
    limit = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_nothing_listens_at_other_addresses_than_asked(launch):
    run = launch("0", "listen", "1", "listen")
    run.wait_for(lambda: run.output().count("noting") == 2)
    inodes = {os.readlink(link) for pid in (run.process.pid, *ranks_of(run))
              for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink() or link.exists()}
    listening = [line.split() for name in ("tcp", "tcp6") for line in
                 Path(f"/proc/{run.process.pid}/net/{name}").read_text().splitlines()[1:]]
    addresses = {row[1].rpartition(":")[0] for row in listening
                 if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
    assert addresses == {"0100007F"}  # 127.0.0.1


def test_a_port_that_is_taken_is_one_line(launch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        run = launch(port=str(server.getsockname()[1]))
        assert run.finish(60) == 2
    (line,) = errors_of(run)
    assert "MASTER_PORT=auto" in line and "in use" in line


def test_lost_ranks_are_started_again_where_that_is_asked(launch):
    run = launch("1", "kill", more=("--max_restarts=1",))
    assert run.finish(60) == 128 + signal.SIGKILL
    assert run.output().count("ready 0") == 2
    assert [line.partition("; ")[0].partition(",")[0] for line in errors_of(run)] == [
        "realsr-r1: error: a rank was lost: starting all again",
        "realsr-r1: error: rank 1 was killed by signal 9 (out of memory?)"]


def test_where_there_are_gpus_ranks_share_the_cores_and_the_allocator_grows_its_segments(monkeypatch):
    names = "PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS"
    for name in names:  # set first, so that they are put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    suit_gpus()
    assert not {*names} & {*os.environ}  # on a CPU `core.cpu` sees to it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    suit_gpus()
    assert [os.environ[name] for name in names] == ["expandable_segments:True", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own
    suit_gpus()
    assert os.environ["OMP_NUM_THREADS"] == "2"
