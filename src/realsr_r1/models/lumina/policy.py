"""The policy: the Lumina-mGPT decoder (Chameleon's, arXiv 2405.09818) with image logits, in the published layout.

Layers are transformers' Chameleon. Ours are the attention's norms and its way through packed rows
(`realsr_r1.models.lumina.attention`), the last layer's way through them (`realsr_r1.models.lumina.last_layer`), and a head that does not mask
image tokens. No image tokenizer inside. Knows ids only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.chameleon.configuration_chameleon import ChameleonConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonDecoderLayer,
    ChameleonModel,
    ChameleonPreTrainedModel,
    ChameleonRMSNorm,
    ChameleonRotaryEmbedding,
    ChameleonSwinDecoderLayer,
)

from realsr_r1.models.lumina import last_layer
from realsr_r1.models.lumina.attention import LuminaAttention, SharedHeadNorm
from realsr_r1.models.lumina.packed_row import SharedPrompts, masks


class LuminaConfig(ChameleonConfig):
    """`ChameleonConfig` under a `model_type` of our own, without an image tokenizer inside.

    `model_parallel_size` is the number of rows of each q/k norm; heads are dealt to rows in contiguous blocks.
    `key_norm_rows`: rows of the k norms where they differ (one row a head, with fewer key/value heads).
    `published_config`: the config.json that the policy was published with, for export to write back.
    """

    model_type = "realsr_r1_lumina"
    sub_configs_defaults = {}
    sub_configs = {}

    key_norm_rows: int | None = None
    published_config: dict | None = None

    def to_dict(self) -> dict[str, Any]:
        """Without `published_config`: trackers log this, and a vocabulary of 65,536 names is no setting of a run."""
        return {key: value for key, value in super().to_dict().items() if key != "published_config"}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: `published_config` too."""
        values = super().to_diff_dict()
        return {**values, "published_config": self.published_config} if self.published_config else values


class LuminaPreTrainedModel(ChameleonPreTrainedModel):
    """Config class, initialisation and split rules shared by the decoder and the policy."""

    config_class = LuminaConfig
    _no_split_modules = [*ChameleonPreTrainedModel._no_split_modules, "LastLayer", "LastSwinLayer"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SharedHeadNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def enable_input_require_grads(self) -> None:
        """transformers', once: each rollout switches gradient checkpointing off and on, and that one adds a hook each time."""
        self.disable_input_require_grads()
        super().enable_input_require_grads()


class LuminaModel(LuminaPreTrainedModel, ChameleonModel):
    """Chameleon's decoder without its image tokenizer; forward is `ChameleonModel`'s, for ids or embeddings."""

    def __init__(self, config: LuminaConfig):
        LuminaPreTrainedModel.__init__(self, config)  # not ChameleonModel's: that one builds a VQ model
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layer_class = ChameleonSwinDecoderLayer if config.swin_norm else ChameleonDecoderLayer
        self.layers = nn.ModuleList([layer_class(config, index) for index in range(config.num_hidden_layers)])
        for layer in self.layers:
            LuminaAttention.adopt(layer.self_attn)
        last_layer.adopt(self.layers[-1])
        self.norm = ChameleonRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = ChameleonRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids: torch.LongTensor | None = None, attention_mask: Any = None,
                position_ids: torch.LongTensor | None = None, shared_prompts: SharedPrompts | None = None,
                predicting: torch.Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Chameleon's forward; with `shared_prompts`, `input_ids` (1, T) is the packed row they describe, positions included.

        Then `last_hidden_state` is (completions, length + 1, hidden): the states that predict each completion's tokens. Of
        a row of samples it is (1, T, hidden), or (1, K, hidden) of the places `predicting` (K,). Raises `ValueError` for a cache
        beside it: a row begins at its prompts.
        """
        if shared_prompts is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        if kwargs.get("past_key_values") is not None:
            raise ValueError("past_key_values have no place beside shared_prompts: a packed row begins at its prompts")
        outputs = super().forward(
            input_ids=input_ids, position_ids=shared_prompts.positions().to(input_ids.device),
            attention_mask=input_ids.new_empty(1, 1, 0, 0),  # four dimensions: transformers builds none of its own
            shared_prompts=shared_prompts, shared_masks=masks(self.config, shared_prompts, self.embed_tokens.weight),
            predicting=predicting, **kwargs)
        if shared_prompts.has_completions:
            outputs.last_hidden_state = outputs.last_hidden_state[0, shared_prompts.predecessors().to(input_ids.device)]
        return outputs


class LuminaPolicy(LuminaPreTrainedModel, GenerationMixin):
    """`policy(input_ids, attention_mask, position_ids).logits`: (B, L, vocabulary), image tokens included."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^model\.vqmodel\."]  # transformers keeps an image encoder beside the decoder

    def __init__(self, config: LuminaConfig):
        super().__init__(config)
        self.model = LuminaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # of transformers' loss functions
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and with `labels` (-100 = not scored) the mean cross-entropy.

        `input_ids` (B, L); `attention_mask` (B, past + L), 1 = attend; `position_ids` (B, L); `logits_to_keep`: only
        the last n positions (0 = all), or a tensor of positions.
        """
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        row = kwargs.get("shared_prompts")
        if row is not None and not row.has_completions and not isinstance(logits_to_keep, int):
            kwargs["predicting"], kept = logits_to_keep, slice(None)
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        hidden_states = outputs.last_hidden_state
        logits = self.lm_head(hidden_states[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values,
                                      hidden_states=outputs.hidden_states, attentions=outputs.attentions)


AutoConfig.register(LuminaConfig.model_type, LuminaConfig)
AutoModelForCausalLM.register(LuminaConfig, LuminaPolicy)
