"""The config.json of a policy in Lumina-mGPT's layout, which that project's code and transformers read.

Tensors need no change: a policy in memory has their names and shapes already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from realsr_r1.models.lumina.policy import LuminaConfig

# Keys of our config.json that Lumina-mGPT's hasn't, or that say the same in another way.
OUR_KEYS = ("model_type", "architectures", "dtype", "rope_parameters", "published_config", "key_norm_rows", "image_token_id",
            "transformers_version")


def lumina_config(config: LuminaConfig, dtype: torch.dtype | None, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
    """What to write as config.json for a policy of this `config` whose tensors are `dtype` (None: of several types).

    `vocabulary` (name -> id) is used where the policy was published without one, or not at all. A published config comes
    back key by key. Three keys follow the weights where those are others now: the size of the vocabulary, the type, and
    `model_parallel_size`, by which Lumina-mGPT's code takes the rows of the q/k norms.
    """
    values = dict(config.published_config or _own_config(config))
    if not values.get("vocabulary_map") and vocabulary:
        values["vocabulary_map"] = dict(vocabulary)
    values.setdefault("mask_image_logits", False)  # Lumina-mGPT's default masks them, and then it writes no images
    values |= {"vocab_size": config.vocab_size, "model_parallel_size": config.model_parallel_size}
    if dtype is not None:
        values["dtype" if "dtype" in values else "torch_dtype"] = str(dtype).removeprefix("torch.")
    return values


def _own_config(config: LuminaConfig) -> dict[str, Any]:
    values = {key: value for key, value in config.to_diff_dict().items() if key not in OUR_KEYS}
    rope = dict(config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    return {**values, "model_type": "chameleon", "architectures": ["ChameleonForConditionalGeneration"], "rope_theta": theta,
            "rope_scaling": None if kind == "default" else {**rope, "type": kind}}
