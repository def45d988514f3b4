"""Processes that were started by another one, and end when it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time

LAUNCHER = "REALSR_R1_LAUNCHER"  # in a rank's environment: the process that started it
LOOK_AT_PARENT = 1.0  # seconds
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Let this process end soon after the process `parent`.

    On Linux it ends at once, elsewhere within a second. A parent that is killed can't end its
    children. They could go on writing into the folder that the same command, started again, writes
    into.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_AT_PARENT)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def join_launcher() -> None:
    """In a rank of torchrun: end when what started it ends, and leave Ctrl-C to our launcher."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    end_with_parent(int(os.environ.get(LAUNCHER, os.getppid())))
    if LAUNCHER in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's waits for C code that may wait for ever
