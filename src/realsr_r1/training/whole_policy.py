"""The policy in one piece, for rollouts in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, Trainer
from trl.models.utils import unwrap_model_for_generation


@contextmanager
def whole_policy(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """The policy of `trainer`, gathered on every rank under ZeRO-3, without gradient checkpointing inside.

    All ranks must enter, and the block must end normally: an exception would leave the policy without its hooks. Under
    `--bf16` without DeepSpeed the weights are float32, and what is computed is not, as in the loss.
    """
    with (unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator,
                                      gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs) as policy,
          trainer.accelerator.autocast()):
        yield policy
