"""Errors in the user's input, and how every command reports them: one line and exit code 2.

Imports nothing of the rest of the package but `parents`; everything may import it.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from realsr_r1.core.parents import LAUNCHER, join_launcher

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_LOST = 75  # of a rank that lost the others, which have said why (EX_TEMPFAIL)


class UserError(Exception):
    """Bad input.

    The message is one line that names the file or flag, what is wrong, and the way out.
    """


class Diverged(UserError):
    """What a policy computes is not finite."""


def meant(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return a question after what is most like `word` among `known`, at most `most` of them.

    It is empty if nothing is like it.
    """
    near = difflib.get_close_matches(word, dict.fromkeys(known), n=most)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> None:
    """Run an entry point's `main(argv)` and leave the process with its exit code.

    A `UserError`, a path that can't be used (rights, a read-only disk, too long a name) and a full
    disk become one line on stderr and exit code 2. Ctrl-C becomes one line and exit code 130. When
    the program that reads the output (`| head`, say) has ended, the exit code is 1. Any other
    exception keeps its traceback, because then the fault is ours. Under torchrun all ranks find
    the same bad input, and only rank 0 reports it. A rank doesn't outlive what started it, and one
    that lost the others is silent where a launcher of ours speaks for it.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what no terminal can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    join_launcher()
    try:
        with _information_on_stdout():
            _refuse_empty(sys.argv[1:] if argv is None else argv)
            code = main(argv) or 0
    except UserError as error:
        code = _complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        _complain("interrupted")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _is_stdout_broken():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes
        code = 1
    except Exception as error:
        filename = getattr(error, "filename2", None) or getattr(error, "filename", None)
        if is_disk_full(error):
            reason = (f"the disk is full{f' while writing {filename}' if filename else ''}; free some space "
                      "or write elsewhere, then run the same command again")
        elif isinstance(error, OSError) and error.errno in _PATH_ERRORS and filename is not None:
            reason = (f"{filename} can't be opened or written ({error.strerror}); change its rights, or give "
                      "another path")
        elif _is_lost_connection(error):
            if LAUNCHER in os.environ:
                sys.exit(EXIT_LOST)
            reason = "the connection to another rank was lost, whose output says why"
        else:
            raise
        code = _complain(reason, of_one_rank=True)
    sys.exit(code)


def _refuse_empty(argv: Sequence[str]) -> None:
    """Raise `UserError` for an empty argument: as a path it would be the working folder."""
    for before, value in zip(["the command", *argv], argv, strict=False):
        flag = value[:-1] if re.fullmatch(r"--\w+=", value) else before if not value else None
        if flag is not None:
            raise UserError(f"{flag} is empty; give a value, or leave it out")


def _is_stdout_broken() -> bool:
    """Whether the program that stdout was piped into has ended."""
    events = select.poll()
    try:
        events.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & select.POLLERR for _, event in events.poll(0))


@contextlib.contextmanager
def _information_on_stdout() -> Iterator[None]:
    """Show what the package logs (which model was loaded, say) while a command runs.

    A program that imports the package sees none of it.
    """
    logger, handler = logging.getLogger("realsr_r1"), logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # peft imports bitsandbytes, which tells every run on a CPU that a faster kernel is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # And DeepSpeed, which peft's import brings along, that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def _complain(line: str, of_one_rank: bool = False) -> int:
    """Print the line and return the exit code for bad input.

    Only rank 0 prints, unless `of_one_rank` says that other ranks may not have met this fault
    (a full disk, missing rights).
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or of_one_rank:
        line = line if rank == "0" else f"rank {rank}: {line}"
        tqdm = sys.modules.get("tqdm")  # its `write` puts the line above a progress bar instead of into it
        write = tqdm.tqdm.write if tqdm else print
        write(f"realsr-r1: error: {line}", file=sys.stderr)
    return EXIT_BAD_INPUT


# What can be wrong with a path that the user gave: rights, a read-only disk, too long a name, links
# in a circle, a folder where a file is to be written, a file where a folder is.
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR,
                errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)


def _is_lost_connection(error: Exception) -> bool:
    """Whether this rank lost another one in the middle of something that both did."""
    return ("RANK" in os.environ and isinstance(error, RuntimeError)
            and any(sign in str(error).lower() for sign in _LOST_SIGNS))


# What torch's backends say when another process of the group has ended.
_LOST_SIGNS = ("connection closed by peer", "connection reset by peer", "gloo/transport/tcp",
               "remote process exited or there was a network error", "broken pipe",
               "connection was likely closed", "socket closed")
# What libraries say instead of raising the OS error: the first two are of tokenizers and
# safetensors, the others of torch.save, when a file came out shorter than what was written.
_DISK_FULL_SIGNS = ("no space left on device", "os error 28", "pytorchstreamwriter failed writing",
                    "unexpected pos")


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error).lower() for sign in _DISK_FULL_SIGNS)
