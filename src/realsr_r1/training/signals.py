"""What a training process does when it is told to stop: it notes it, and ends after the step."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A second Ctrl-C ends at once. One that comes sooner is the same, by another way: schedulers signal
# every process of a job, and a launcher passes on what it gets.
SECOND = 1.0  # seconds


def exit_code(number: int) -> int:
    """Return the code of a process that was told to stop by this signal.

    It is 128 + the signal for SIGINT and SIGTERM, and that of SIGTERM for what schedulers send
    instead of it.
    """
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


class StopNow(Exception):
    """Ends a step in its middle, on all ranks, where its end would come too late."""


class StopSignals:
    """Notes the first of the signals that ask a process to stop.

    `received`: its number, or 0. `since`: when it came, of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.received, self.since = 0, 0.0
        self._is_late: Callable[[], bool] | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, signals are noted in `received`, and change nothing else."""
        if threading.current_thread() is not threading.main_thread():  # Python lets no other one do it
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self, is_late: Callable[[], bool]) -> Iterator[None]:
        """Inside, a signal raises `StopNow` where `is_late()` says so."""
        self._is_late = is_late
        try:
            yield
        finally:
            self._is_late = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self.since > SECOND:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self.since = number, now
            if self._is_late is not None and self._is_late():
                raise StopNow
