"""Pickles that libraries load as they are: read first with a list of what they may hold.

A pickle may name any function, and loading calls it. torch's reader for weights refuses whatever is
not on its list; what DeepSpeed writes beside tensors is added here.
"""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

from realsr_r1.core.errors import UserError

DEEPSPEEDS = ("deepspeed.runtime.fp16.loss_scaler:LossScaler",
              "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler",
              "deepspeed.runtime.zero.config:ZeroStageEnum",
              "deepspeed.utils.tensor_fragment:fragment_address")


def require_harmless(file: Path, way_out: str) -> None:
    """Raise `UserError` where loading a file of DeepSpeed's could run code, or where it can't be read.

    No tensor is read. `way_out`: what the message ends with.
    """
    import torch

    try:
        with torch.serialization.safe_globals([resolve_name(name) for name in DEEPSPEEDS]):
            torch.load(file, weights_only=True, mmap=True, map_location="meta")
    except Exception as error:  # whatever a file that isn't one makes of it
        named = re.search(r"(?:GLOBAL|function) (\S+)", str(error))
        reason = f"it would run {named[1]}" if named else str(error).split("\n")[0]
        raise UserError(f"{file} is not what DeepSpeed writes ({reason}), and loading it could run code; "
                        f"{way_out}") from error
