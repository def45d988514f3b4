"""Lets ranks fail together: all of them learn of a fault before the next collective.

Otherwise the ranks without a fault would wait there for ever.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from realsr_r1.core.errors import UserError, is_disk_full


class Agreement:
    """Keeps the first fault of this rank until `settle`, which all ranks call.

    `with agreement: ...` holds an exception back, and `guard` does the same for a reward function.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def __enter__(self) -> Agreement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, Exception):
            self.fault = self.fault or error
            return True
        return False

    def guard(self, reward: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
        """Wrap `reward` so that it gives None for every completion when it fails.

        Coroutines are left to TRL.
        """
        if inspect.iscoroutinefunction(reward):
            return reward

        @functools.wraps(reward)
        def guarded(*args: Any, **kwargs: Any) -> list[float | None]:
            with self:
                return reward(*args, **kwargs)
            return [None] * len(kwargs["completions"])

        return guarded

    def settle(self) -> None:
        """Raise an error on all ranks when any rank has a fault.

        A rank with a fault raises its own; the others raise an error that names it.
        """
        fault, self.fault = self.fault, None
        said = None
        if fault is not None:
            is_users = isinstance(fault, UserError) or is_disk_full(fault)
            said = (is_users, str(fault) if is_users else f"{type(fault).__name__}: {fault}")
        everyone = gather_object([said])
        if fault is not None:
            raise fault
        for rank, other in enumerate(everyone):
            if other is not None:
                is_users, message = other
                raise (UserError if is_users else RuntimeError)(f"rank {rank}: {message}")
