"""Lets ranks fail together: all of them learn of a fault before the next collective.

Otherwise the ranks without a fault would wait there for ever.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object

from realsr_r1.core.errors import UserError, is_disk_full
from realsr_r1.training.signals import StopNow


class Agreement:
    """Keeps the first fault of this rank until `settle`, which all ranks call.

    `with agreement: ...` holds an exception back, `sys.exit` in a user's function included.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def __enter__(self) -> Agreement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, SystemExit):
            error = UserError(f"a function of yours ended the process (sys.exit({error.code!r})); let it "
                              "raise an error")
        if isinstance(error, Exception):
            self.fault = self.fault or error
            return True
        return False

    def settle(self) -> None:
        """Raise an error on all ranks when any rank has a fault.

        A rank with a fault raises its own; the others raise an error that names it.
        """
        fault, self.fault = self.fault, None
        said = None
        if isinstance(fault, (UserError, StopNow)) or fault is not None and is_disk_full(fault):
            said = (type(fault) if isinstance(fault, (UserError, StopNow)) else UserError, str(fault))
        elif fault is not None:
            said = (RuntimeError, f"{type(fault).__name__}: {fault}")
        everyone = gather_object([said])
        if fault is not None:
            raise fault
        for rank, other in enumerate(everyone):
            if other is not None:
                kind, message = other
                raise kind(f"rank {rank}: {message}")
