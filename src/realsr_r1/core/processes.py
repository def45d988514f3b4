"""Runs calls in several processes with a progress bar.

A process that is killed becomes an error and no endless wait, and no process outlives its parent.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.parents import end_with_parent

MOST_PROCESSES = 1024  # that a command may be asked to start


def run_all(calls: Iterable[tuple[Callable[[], None], int]], processes: int, total: int, done: int,
            unit: str, what: str = "create-json") -> None:
    """Run `calls` in `processes` processes, or here if that is 1; raises what a call raises.

    `calls` yields each call with its size, and is asked for the next one only when a process is
    about to be free. `total` and `done` are sums of sizes in `unit`, and `what` is done, for the
    progress bar. Raises
    `UserError` when a process was killed.
    """
    from tqdm import tqdm

    if done == total:
        return
    with tqdm(total=total, initial=done, unit=f" {unit}", desc=what) as bar:
        if processes <= 1:
            for call, size in calls:
                call()
                bar.update(size)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        executor = ProcessPoolExecutor(processes, context, initializer=end_with_parent,
                                       initargs=(os.getpid(),))
        waiting: dict[Future[None], int] = {}
        try:
            for call, size in calls:
                waiting[executor.submit(call)] = size
                if len(waiting) >= 2 * processes:
                    _take_finished(waiting, bar)
            while waiting:
                _take_finished(waiting, bar)
        except BrokenProcessPool as error:
            raise UserError("a worker process was killed (out of memory?); what is done is kept: run the "
                            "same command again, perhaps with a smaller --num_proc") from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _take_finished(waiting: dict[Future[None], int], bar: Any) -> None:
    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in finished:
        bar.update(waiting.pop(future))
        future.result()
