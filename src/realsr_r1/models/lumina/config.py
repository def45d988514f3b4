"""The config of a Lumina-mGPT policy: from our folders and published ones, as numbers, and as it is
published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonConfig

from realsr_r1.models.protocol import PolicyShape

PUBLISHED_MODEL_TYPE = "chameleon"  # of Lumina-mGPT, PURE and transformers' Chameleon alike
# Keys of a published config.json that are not the decoder's: its own VQ model and its vocabulary.
# They are kept with all others in `published_config`.
FOREIGN_KEYS = ("model_type", "architectures", "vq_config", "vocabulary_map", "torch_dtype", "dtype",
                "transformers_version", "image_token_id")
# Keys of our config.json that Lumina-mGPT's hasn't, or that say the same in another way.
OUR_KEYS = ("model_type", "architectures", "dtype", "rope_parameters", "published_config", "key_norm_rows",
            "image_token_id", "transformers_version")
QUERY_NORM, KEY_NORM = (f"model.layers.0.self_attn.{name}_norm.weight" for name in "qk")


class LuminaConfig(ChameleonConfig):
    """`ChameleonConfig` under a `model_type` of our own, without an image tokenizer inside.

    `model_parallel_size` is the number of rows of each q/k norm; heads are dealt to rows in
    contiguous blocks. `key_norm_rows`: rows of the k norms where they differ (one row a head, with
    fewer key/value heads). `published_config`: the config.json that the policy was published with,
    for export to write back.
    """

    model_type = "realsr_r1_lumina"
    sub_configs_defaults = {}
    sub_configs = {}

    key_norm_rows: int | None = None
    published_config: dict | None = None

    @classmethod
    def from_folder(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LuminaConfig:
        """See `PolicyConfig`. Of a published folder all keys are kept, in `published_config`.

        How many rows its q/k norms have is taken from its tensors: Lumina-mGPT stores
        `model_parallel_size` of them, transformers one a head under whatever the config says.
        """
        values = {key: value for key, value in raw.items() if key not in FOREIGN_KEYS}
        if values.get("num_key_value_heads", 0) is None:  # as older configs say "as many as heads"
            values["num_key_value_heads"] = values.get("num_attention_heads", cls.num_attention_heads)
        if raw["model_type"] == PUBLISHED_MODEL_TYPE:
            values["published_config"] = dict(raw)
            rows = [shapes[name][0] for name in (QUERY_NORM, KEY_NORM) if len(shapes.get(name, ())) == 2]
            if len(rows) == 2:  # else comparing all tensors names what is missing or of another shape
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
        """Without `published_config`: trackers log this, and a vocabulary of 65,536 names is no
        setting of a run.
        """
        return {key: value for key, value in super().to_dict().items() if key != "published_config"}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: `published_config` too."""
        values = super().to_diff_dict()
        return {**values, "published_config": self.published_config} if self.published_config else values

    def as_published(self, dtype: torch.dtype | None, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
        """See `PolicyConfig`: what Lumina-mGPT's code and transformers read.

        `vocabulary`: used where there was none published.

        A published config comes back key by key. Three keys follow the weights where those are
        others now: the size of the vocabulary, the type, and `model_parallel_size`, by which
        Lumina-mGPT's code takes the rows of the q/k norms.
        """
        values = dict(self.published_config or self._without_our_keys())
        if not values.get("vocabulary_map") and vocabulary:
            values["vocabulary_map"] = dict(vocabulary)
        # Lumina-mGPT's default masks them, and then it writes no images
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
