"""Runs commands in children that are forked from a process which has imported everything already.

A case takes as long as the command needs to notice a fault, and not the seconds of an import. What
a child does is judged: its exit code, what it printed, how long it took, and what it left behind.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS = 20  # of computing; others may keep the processors busy
MOST_WAITING = 240.0  # seconds by the clock
MOST_MEMORY = 12 * 2**30  # of a child's addresses
LEFTOVERS = ("*.partial", ".*.old", ".realsr-r1-*")
REFUSED, ACCEPTED = "refused", "accepted"  # every other outcome is a fault


@dataclass(frozen=True)
class Case:
    """A command with something wrong, or with nothing wrong, so that the others are worth something.

    `area`: the command. `what`: what is wrong, in words. `argv`: its arguments. `folder`: where it
    may write; it is made anew. `is_good`: nothing is wrong, and the command must not refuse it.
    """

    area: str
    what: str
    argv: Sequence[str]
    folder: Path
    is_good: bool = False


@dataclass(frozen=True)
class Result:
    """How a case ended.

    `outcome`: refused, accepted, or what is wrong with how it ended. `seconds`: that it computed.
    """

    case: Case
    outcome: str
    seconds: float
    said: str

    @property
    def is_fault(self) -> bool:
        return self.outcome not in (REFUSED, ACCEPTED)


def run(case: Case, main: Callable[[Sequence[str]], None]) -> Result:
    """Run a case in a child of its own and judge it. `main`: leaves the process with its exit code."""
    case.folder.mkdir(parents=True, exist_ok=True)
    out = case.folder / "out.log"
    child = os.fork()
    if child == 0:
        _be_child(case, main, out)
    code, seconds = _wait(child, time.monotonic() + MOST_WAITING)
    said = out.read_text(encoding="utf-8", errors="replace")
    outcome = _outcome(code, said, case.folder)
    if case.is_good and outcome == REFUSED:
        outcome = "refused, and nothing was wrong"
    return Result(case, outcome, seconds, said)


def _be_child(case: Case, main: Callable[[Sequence[str]], None], out: Path) -> None:
    code = 70
    try:
        os.setsid()
        with open(os.devnull) as nothing, open(out, "w") as file:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(case.folder)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
        main(list(case.argv))
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, until: float) -> tuple[int | None, float]:
    """Return the exit code (negative: a signal) and the seconds of computing; None: it hung."""
    while time.monotonic() < until:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            _end_group(child)  # what it started
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    _end_group(child)
    os.waitpid(child, 0)
    return None, MOST_WAITING


def _end_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _outcome(code: int | None, said: str, folder: Path) -> str:
    lines = [line for line in said.splitlines() if "error: " in line and line.startswith("realsr-r1")]
    if code is None or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "hung" if code is None else f"computed for over {MOST_SECONDS} s"
    if "Traceback" in said:
        return "traceback"
    if code < 0:
        return f"killed by signal {-code}"
    if code not in (0, 2):
        return f"exit code {code}"
    if not Path(os.devnull).is_char_device():  # root can do that
        return f"replaced {os.devnull}"
    left = next(iter(_half_written(folder)), None)
    if left is not None:
        return f"left {left.relative_to(folder)}"
    if code == 0:
        return ACCEPTED
    return REFUSED if len(lines) == 1 else f"{len(lines)} lines of complaint"


def _half_written(folder: Path) -> Iterator[Path]:
    """Yield what a command that ended should not have left: temporary names, JSON that is cut."""
    for pattern in LEFTOVERS:
        yield from folder.rglob(pattern)
    for file in folder.glob("output/**/*.json"):
        try:
            json.loads(file.read_bytes())
        except ValueError:
            yield file
