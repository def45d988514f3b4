"""Which device a stage runs on (CUDA where there is one, else the CPU), and the number type of a policy there."""

from __future__ import annotations

from realsr_r1.core.errors import UserError


def pick_device(name: str | None = None) -> str:
    """Return `name` (cuda, cuda:1, cpu ...), or without a name CUDA where there is a GPU, else cpu.

    Raises `UserError` when the named device can't be used here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} can't be used here ({reason}); leave the flag out or try "
                        "--device cpu") from error
    return name


POLICY_DTYPES = ("float32", "bfloat16", "float16")


def policy_dtype(device: str) -> str:
    """The number type (one of `POLICY_DTYPES`) of a policy that answers and is not trained on this device."""
    return "bfloat16" if device.startswith("cuda") else "float32"
