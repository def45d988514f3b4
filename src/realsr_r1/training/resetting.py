"""The weights of a checkpoint as a model folder, to go on from with a new optimizer."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from realsr_r1.core.files import atomic_folder

FOLDER = ".weights"


@contextlib.contextmanager
def weights_of(checkpoint: Path | None, model: str, is_first: bool) -> Iterator[Path]:
    """Yield a folder that `load_policy` can load the whole weights of a checkpoint from.

    That is `model` where there is no checkpoint, and the checkpoint where it has them. Of
    DeepSpeed's shards, which have them in float32, the first process makes one beside the
    checkpoint, which is gone afterwards. All processes must enter.
    """
    from accelerate import PartialState

    if checkpoint is None or not any(checkpoint.glob("global_step*")):
        yield checkpoint or Path(model)
        return
    folder = checkpoint.with_name(FOLDER)
    if is_first:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
        from safetensors.torch import save_file

        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
        with atomic_folder(folder) as partial:
            save_file({name: tensor.contiguous() for name, tensor in state.items()},
                      partial / "model.safetensors", metadata={"format": "pt"})
            shutil.copy(checkpoint / "config.json", partial)
    PartialState().wait_for_everyone()
    try:
        yield folder
        PartialState().wait_for_everyone()
    finally:
        if is_first:
            shutil.rmtree(folder, ignore_errors=True)
