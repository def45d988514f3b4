"""Policies with layers of 8 or 4 bits (bitsandbytes), for training adapters and for restoring."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_bitsandbytes() -> None:
    """Raise `UserError` where the package is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--load_in_4bit and --load_in_8bit need the bitsandbytes package: pip install "
                        "bitsandbytes")


def load_quantised(path: str | Path, dtype: torch.dtype | str, bits: int, device: str) -> PreTrainedModel:
    """Load a policy whose layers have 8 or 4 bits, onto `device`.

    In 4 bits they are NormalFloat (arXiv 2305.14314). `dtype`: in which they are computed, and the
    type of the other parameters. Raises `UserError` where that can't be done.
    """
    import torch
    from transformers import BitsAndBytesConfig

    from realsr_r1.models.loading import load_policy

    check_bitsandbytes()
    if not device.startswith("cuda") and torch.cuda.is_available():
        raise UserError(f"--load_in_{bits}bit puts the policy on the GPU; leave --device {device} out")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    config = BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    # transformers puts quantised weights on the current GPU, and they can't be moved afterwards.
    with torch.cuda.device(device) if device.startswith("cuda") else contextlib.nullcontext():
        return load_policy(path, dtype, quantization_config=config)
