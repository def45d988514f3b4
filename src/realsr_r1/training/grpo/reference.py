"""The reference policy of `beta > 0`, built as the policy was: through our loader.

TRL would take the class that the folder's config names, and that is transformers' for published folders, which refuses
their norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trl.trainer.grpo_trainer
from transformers import PreTrainedModel

from realsr_r1.models import load_policy


@contextmanager
def reference_like(policy: PreTrainedModel) -> Iterator[None]:
    """Inside, a GRPOTrainer that is made builds its reference from the policy's folder, in its type and attention."""
    def load(path: str, **_: Any) -> PreTrainedModel:
        return load_policy(path, dtype=policy.dtype, attn_implementation=policy.config._attn_implementation)

    theirs = trl.trainer.grpo_trainer.create_model_from_path
    trl.trainer.grpo_trainer.create_model_from_path = load
    try:
        yield
    finally:
        trl.trainer.grpo_trainer.create_model_from_path = theirs
