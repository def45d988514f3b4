"""The config of a Lumina-mGPT policy, read from our folders and from published ones.

It also gives the policy in numbers, and the config in its published form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonConfig

from realsr_r1.models.protocol import PolicyShape

PUBLISHED_MODEL_TYPE = "chameleon"  # in Lumina-mGPT, PURE and transformers' Chameleon
# Keys of a published config.json that don't belong to the decoder, such as its VQ model and its
# vocabulary. `published_config` keeps them, as it keeps all keys.
FOREIGN_KEYS = ("model_type", "architectures", "vq_config", "vocabulary_map", "torch_dtype", "dtype",
                "transformers_version", "image_token_id")
# Keys of our config.json that Lumina-mGPT's doesn't have, or that say the same in another way.
OUR_KEYS = ("model_type", "architectures", "dtype", "rope_parameters", "published_config", "key_norm_rows",
            "image_token_id", "transformers_version")
QUERY_NORM, KEY_NORM = (f"model.layers.0.self_attn.{name}_norm.weight" for name in "qk")


class LuminaConfig(ChameleonConfig):
    """`ChameleonConfig` under a `model_type` of our own, without an image tokenizer inside.

    `model_parallel_size` is the number of rows of each q/k norm; each row serves a contiguous block
    of heads. `key_norm_rows`: rows of the k norms where their number differs (one row for each
    head, with fewer key/value heads). `published_config`: the config.json that the policy was
    published with, for export to write back.
    """

    model_type = "realsr_r1_lumina"
    sub_configs_defaults = {}
    sub_configs = {}

    key_norm_rows: int | None = None
    published_config: dict | None = None

    @classmethod
    def from_folder(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LuminaConfig:
        """See `PolicyConfig`. All keys of a published folder are kept, in `published_config`.

        The tensors show how many rows the q/k norms have: Lumina-mGPT stores `model_parallel_size`
        rows, and transformers one for each head, whatever the config says.
        """
        values = {key: value for key, value in raw.items() if key not in FOREIGN_KEYS}
        if values.get("num_key_value_heads", 0) is None:  # in older configs it means "as many as heads"
            values["num_key_value_heads"] = values.get("num_attention_heads", cls.num_attention_heads)
        if raw["model_type"] == PUBLISHED_MODEL_TYPE:
            values["published_config"] = dict(raw)
            rows = [shapes[name][0] for name in (QUERY_NORM, KEY_NORM) if len(shapes.get(name, ())) == 2]
            if len(rows) == 2:  # otherwise the comparison of all tensors will name the fault
                values["model_parallel_size"] = rows[0]
                values |= {"key_norm_rows": rows[1]} if rows[1] != rows[0] else {}
        return cls(**values)

    @property
    def shape(self) -> PolicyShape:
        """The policy in numbers."""
        return PolicyShape(
            self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.num_attention_heads,
            self.num_key_value_heads, self.vocab_size, self.model_parallel_size,
            self.key_norm_rows or self.model_parallel_size, self.attention_bias,
            self.mlp_bias, bool(self.tie_word_embeddings))

    def to_dict(self) -> dict[str, Any]:
        """Return the config without `published_config`.

        Trackers log this, and a vocabulary of 65,536 names is no setting of a run.
        """
        return {key: value for key, value in super().to_dict().items() if key != "published_config"}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds, `published_config` included."""
        values = super().to_diff_dict()
        return {**values, "published_config": self.published_config} if self.published_config else values

    def as_published(self, dtype: torch.dtype | None, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
        """See `PolicyConfig`. Lumina-mGPT's code and transformers can read the result.

        A published config comes back key by key. Three keys follow the weights where these have
        changed: the size of the vocabulary, the type, and `model_parallel_size`, by which
        Lumina-mGPT's code reads the rows of the q/k norms. `vocabulary`: used where the policy was
        published without one.
        """
        values = dict(self.published_config or self._without_our_keys())
        if not values.get("vocabulary_map") and vocabulary:
            values["vocabulary_map"] = dict(vocabulary)
        # By default Lumina-mGPT masks the image logits, and then it writes no images.
        values.setdefault("mask_image_logits", False)
        values |= {"vocab_size": self.vocab_size, "model_parallel_size": self.model_parallel_size}
        if dtype is not None:
            values["dtype" if "dtype" in values else "torch_dtype"] = str(dtype).removeprefix("torch.")
        return values

    def _without_our_keys(self) -> dict[str, Any]:
        values = {key: value for key, value in self.to_diff_dict().items() if key not in OUR_KEYS}
        rope = dict(self.rope_parameters)
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        return {**values, "model_type": PUBLISHED_MODEL_TYPE,
                "architectures": ["ChameleonForConditionalGeneration"], "rope_theta": theta,
                "rope_scaling": None if kind == "default" else {**rope, "type": kind}}
