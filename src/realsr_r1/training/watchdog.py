"""Ends a run whose ranks don't get on, and names the rank and its phase.

Ranks that wait for another one wait for ever on a CPU. Each rank notes in a small file, from a
thread of its own, that it lives and how far it is; a rank that waits too long looks at the others'
and finds whom it waits for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import checked, fields_of

FOLDER = ".ranks"
LOOKS = 20  # in a time-out
LONGEST_PAUSE = 10.0  # seconds between looks
EXIT_STUCK = 1
LAST_WORDS = 2.0  # seconds that other ranks leave the speaker


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life: its number, how many phases it has begun or ended, and the one it is in."""

    beat: int
    count: int
    phase: str


SIGN = fields_of(Sign)  # made once, for a form is compiled when it is first used


class Watchdog:
    """Watches one rank, and from it the others.

    `output`: the run's folder. `timeout`: seconds that a phase may take, 0 for any time. `way_on`:
    what to say about how the run goes on.
    """

    def __init__(self, output: str | Path, rank: int, ranks: int, timeout: float,
                 way_on: Callable[[], str]) -> None:
        self.folder, self.rank, self.ranks = Path(output) / FOLDER, rank, ranks
        self.timeout, self.way_on = timeout, way_on
        self._phase, self._count, self._since = "step", 0, time.monotonic()
        self._others: dict[int, tuple[Sign, float]] = {}  # and when it last changed, by our clock
        checked(SIGN, asdict(Sign(0, 0, "")), FOLDER)  # compiles the form, before time counts

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, this rank is in the phase `name`. All ranks enter the same ones, in the same order."""
        before = self._phase
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, ranks are watched."""
        if not self.timeout:
            yield
            return
        done = threading.Event()
        self._enter("step")
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(OSError):
                # The first rank removes those of ranks that an earlier run had more, too.
                for file in self.folder.glob("*.json") if self.rank == 0 else [self._file(self.rank)]:
                    if file == self._file(self.rank) or int(file.stem) >= self.ranks:
                        file.unlink(missing_ok=True)
                self.folder.rmdir()  # the last one

    def _enter(self, name: str) -> None:
        self._phase, self._count, self._since = name, self._count + 1, time.monotonic()

    def _watch(self, done: threading.Event) -> None:
        pause, beat = min(LONGEST_PAUSE, self.timeout / LOOKS), 0
        while not done.wait(pause):
            beat += 1
            sign = Sign(beat, self._count, self._phase)
            if self.ranks > 1:
                with contextlib.suppress(OSError):  # a full disk is somebody else's to report
                    self._meet(sign)
            if time.monotonic() - self._since > self.timeout:
                blamed, said = self._whom(sign)
                self._end(blamed, said)

    def _meet(self, sign: Sign) -> None:
        """Show this rank's sign, and read those of the others."""
        with atomic_file(self._file(self.rank)) as partial:
            partial.write_text(json.dumps(asdict(sign)), encoding="utf-8")
        for rank in set(range(self.ranks)) - {self.rank}:
            with contextlib.suppress(UserError, TypeError, OSError):
                theirs = Sign(**read_json(self._file(rank), SIGN))
                if rank not in self._others or self._others[rank][0] != theirs:
                    self._others[rank] = theirs, time.monotonic()

    def _whom(self, mine: Sign) -> tuple[int, str]:
        """(rank that the others wait for, what is said about it)."""
        now = time.monotonic()
        silent = {rank: sign for rank, (sign, at) in self._others.items() if now - at > self.timeout / 2}
        if silent:
            rank = min(silent)
            return rank, (f"rank {rank} has given no sign of life for {self.timeout:g} s (stopped, or out of "
                          f"memory?), last in the phase {silent[rank].phase}")
        signs = {self.rank: mine, **{rank: sign for rank, (sign, _) in self._others.items()}}
        rank = min(signs, key=lambda rank: (signs[rank].count, rank))
        return rank, f"rank {rank} has been in the phase {signs[rank].phase} for {self.timeout:g} s"

    def _end(self, blamed: int, said: str) -> None:
        """End this process; one of those that can, says why."""
        now = time.monotonic()
        alive = {self.rank, *(rank for rank, (_, at) in self._others.items() if now - at <= self.timeout / 2)}
        if self.rank == (blamed if blamed in alive else min(alive)):
            print(f"realsr-r1: error: {said} (--rank_timeout {self.timeout:g}), so the run ends; "
                  f"{self.way_on()}", file=sys.stderr, flush=True)
        else:
            time.sleep(LAST_WORDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(EXIT_STUCK)

    def _file(self, rank: int) -> Path:
        return self.folder / f"{rank}.json"
