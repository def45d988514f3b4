"""The policy in one piece, for rollouts in the middle of training.

It relies on TRL's hook `unwrap_model_for_generation`, see `grpo.trl_hooks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trl.models.utils
from transformers import PreTrainedModel, Trainer


@contextmanager
def whole_policy(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """Yield the policy of `trainer` without gradient checkpointing, gathered under ZeRO-3.

    All ranks must enter, and the block must end normally: an exception would leave the policy
    without its hooks. Under `--bf16` without DeepSpeed the weights are float32, and the computation
    is in bfloat16, as in the loss.
    """
    unwrap = trl.models.utils.unwrap_model_for_generation
    with (unwrap(trainer.model_wrapped, trainer.accelerator,
                 gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs) as policy,
          trainer.accelerator.autocast()):
        yield policy
