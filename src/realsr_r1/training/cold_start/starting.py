"""What is done to a policy before its cold start begins."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from realsr_r1.core.errors import UserError
from realsr_r1.core.run_files import was_trained

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor


def zero_image_head(policy: PreTrainedModel, processor: ChainProcessor, folder: str | Path,
                    says: bool = True) -> None:
    """Set the rows of the head that belong to image codes to zero, so all codes are equally likely.

    The published cold start does this to the policy that it starts from, unless that is what
    another of its runs has left. The `folder` of a run, a checkpoint or their export keeps its rows
    here, too, and with `says` one line says so. All ranks must call it (ZeRO-3). Raises `UserError`
    where the head is the embedding, too, which would lose the codes.
    """
    if policy.config.tie_word_embeddings:
        raise UserError(f"--zero_image_head true: the head of {folder} is its embedding, too, and would "
                        "forget what the image codes are; leave it out")
    if was_trained(Path(folder)):
        if says:
            print(f"--zero_image_head: {folder} is what a run has left, so its head keeps its image rows")
        return
    if says:
        print(f"--zero_image_head: the head's rows of image codes are set to zero, for {folder} doesn't say "
              "that a run has left it; leave the flag out for a policy that writes images already")
    weight = policy.get_output_embeddings().weight
    with _whole(weight), torch.no_grad():
        weight[list(processor.layout.code_ids)] = 0.0


def _whole(weight: torch.nn.Parameter) -> contextlib.AbstractContextManager:
    """Inside, a parameter that ZeRO-3 has partitioned is whole; what rank 0 writes counts."""
    if not hasattr(weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0)
