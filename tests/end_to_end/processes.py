"""Starting real runs, waiting for them with a limit, and ending them: each with a log file, a free
port and its own session.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 300.0  # seconds until a run trains: imports on a busy machine
POLL = 0.02


@dataclass
class Run:
    """A process and the file that holds its output (both streams)."""

    process: subprocess.Popen
    log: Path

    def output(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def finish(self, seconds: float = START_LIMIT) -> int:
        """Its exit code; ends it and fails when it takes longer than `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {seconds} s:\n{self.output()[-4000:]}") from None

    def wait_for(self, ready: Callable[[], bool], seconds: float = START_LIMIT) -> None:
        """Return once `ready()`; ends the run and fails when it is over before that, or after
        `seconds`.
        """
        limit = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.end()
                raise AssertionError(f"did not get there (exit code "
                                     f"{self.process.poll()}):\n{self.output()[-4000:]}")
            time.sleep(POLL)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End the run with all its processes (torchrun ends its workers on SIGTERM)."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def start(command: Sequence[str], log: Path, env: Mapping[str, str | None] | None = None) -> Run:
    """Run `command` in the repository's folder. `env` is added to this process's;

    None takes a variable out.
    """
    merged = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{Path(__file__).parent}", "PYTHON": sys.executable,
              **(env or {})}
    # What this process has from elsewhere (scripts/gpu_check.sh --wheels), its children need, too.
    merged["PYTHONPATH"] = os.pathsep.join(filter(None, (merged["PYTHONPATH"], os.environ.get("PYTHONPATH"))))
    merged = {name: value for name, value in merged.items() if value is not None}
    with open(log, "ab") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=merged, stdout=file, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
    return Run(process, log)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
