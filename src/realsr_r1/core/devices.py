"""Which device a stage runs on, and the number type of a policy there."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from realsr_r1.core.errors import UserError


def pick_device(name: str | None = None, flag: str = "--device") -> str:
    """`name` (cuda, cuda:1, cpu ...); without a name cuda where there is a GPU, else cpu.

    Raises `UserError`, which names `flag`, when the named device can't be used here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except Exception as error:  # torch raises anything for a name that is no device
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag} {name} can't be used here ({reason}); leave the flag out or try "
                        f"{flag} cpu") from error
    return name


POLICY_DTYPES = ("float32", "bfloat16", "float16")


def policy_dtype(device: str) -> str:
    """The number type of a policy that is used, not trained: one of `POLICY_DTYPES`."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def triton_compiler() -> str:
    """The path of the C compiler with which Triton builds what starts its kernels.

    TRL's fused loss needs it on a GPU, for the first time after the first rollout. Raises `UserError`
    when there is no compiler or when Python's headers are missing.
    """
    names = filter(None, (os.environ.get("CC"), "gcc", "clang"))  # as Triton looks for one
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise UserError("there is no C compiler (CC, gcc, clang), which Triton needs for the fused loss on a "
                        "GPU: apt install gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise UserError(f"there is no {header}, which Triton needs for the fused loss on a GPU: install "
                        "Python's headers (apt install python3-dev), or another Python")
    return compiler
