"""A run's folder has one writer at a time: the lock that says who it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.schema import Json, Text

LOCK_FILE = "run.lock"
PATIENCE = 3.0  # seconds; what was killed a moment ago may still be going
AGAIN = 0.1  # seconds


@contextlib.contextmanager
def sole_writer(output: str | Path) -> Iterator[None]:
    """Hold the lock of the run in `output`, which is made where it isn't there.

    The system releases it when this process ends, however it ends. Raises `UserError` that names
    the holder where another process has it. On a disk without locks there is none.
    """
    path = Path(output).absolute() / LOCK_FILE
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            # A lock of the process, not of the open file: what it forks must not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(file)
            file.close()
            if time.monotonic() > limit:
                raise UserError(f"{output} is being written by another run{holder}; wait for it, end it, or "
                                "give another --output_dir") from error
            time.sleep(AGAIN)
            continue
        except OSError:
            break  # a network disk without locks
        if _is_at(path, file):
            break
        file.close()  # its holder has removed it since
    with file:
        file.truncate(0)
        file.write(_about_us())
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a run that was refused leaves no empty folder
                for folder in made:
                    folder.rmdir()


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _about_us() -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                       "since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": command})


def _holder(file: IO[str]) -> str:
    """In words who holds the lock; nothing where it can't be read."""
    file.seek(0)
    with contextlib.suppress(UserError, KeyError, TypeError):
        note = parsed_json(file.read(), LOCK_FILE, dict[Text, Json])
        return f": process {note['pid']} on {note['host']}, since {note['since']} ({note['command']})"
    return ""
