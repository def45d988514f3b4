"""The policy: Lumina-mGPT's decoder (Chameleon's, arXiv 2405.09818), in the published layout.

Its layers are transformers' Chameleon layers, except for the attention's norms and the handling of
packed rows (`attention`, `layers`). The head does not mask image tokens, and there is no image
tokenizer inside. Knows ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonModel,
    ChameleonPreTrainedModel,
    ChameleonRotaryEmbedding,
)

from realsr_r1.models.lumina.attention import LuminaAttention, SharedHeadNorm
from realsr_r1.models.lumina.config import PUBLISHED_MODEL_TYPE, LuminaConfig
from realsr_r1.models.lumina.decoder import LuminaDecoder
from realsr_r1.models.lumina.graphs import GraphDecoder
from realsr_r1.models.lumina.layers import (
    LuminaLayer,
    RMSNorm,
    add_dropout,
    convert_inputs_once,
    give_norms_one_gradient,
)
from realsr_r1.models.lumina.packed_row import masks
from realsr_r1.models.protocol import Family, PackedRow


class LuminaPreTrainedModel(ChameleonPreTrainedModel):
    """Config class, initialisation and split rules, shared by the decoder and the policy."""

    config_class = LuminaConfig
    _no_split_modules = ["LuminaLayer"]
    _can_record_outputs = {"hidden_states": LuminaLayer, "attentions": LuminaAttention}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SharedHeadNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def enable_input_require_grads(self) -> None:
        """Do what transformers does, but once.

        Each rollout switches gradient checkpointing off and on, and transformers would add a hook
        each time.
        """
        self.disable_input_require_grads()
        super().enable_input_require_grads()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None,
                                      **settings: Any) -> None:
        """Do what transformers does, with all of `--activation_checkpointing_kwargs`.

        TRL calls it after a rollout with the flag's value as it is; transformers' trainer takes
        these two out of it, and its method does not.
        """
        kwargs = dict(gradient_checkpointing_kwargs or {})
        settings |= {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
        self._activation_checkpointing_enable(kwargs or None, **settings)


class LuminaModel(LuminaPreTrainedModel, ChameleonModel):
    """Chameleon's decoder without its image tokenizer, for ids or embeddings.

    The forward is `ChameleonModel`'s.
    """

    def __init__(self, config: LuminaConfig):
        LuminaPreTrainedModel.__init__(self, config)  # ChameleonModel's own would build a VQ model
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([LuminaLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = ChameleonRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids: torch.LongTensor | None = None, attention_mask: Any = None,
                position_ids: torch.LongTensor | None = None, shared_prompts: PackedRow | None = None,
                predicting: torch.Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Run Chameleon's forward.

        With `shared_prompts`, `input_ids` (1, T) is the packed row that they describe, with its
        positions. Then `last_hidden_state` is (completions, length + 1, hidden): the states that
        predict each completion's tokens. For a row of samples it is (1, T, hidden), or
        (1, K, hidden) for the places in `predicting` (K,). Raises `ValueError` when a cache is
        given too, since a row begins with its prompts.
        """
        if shared_prompts is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask,
                                   position_ids=position_ids, **kwargs)
        if kwargs.get("past_key_values") is not None:
            raise ValueError("past_key_values have no place beside shared_prompts: a packed row begins at "
                             "its prompts")
        # This mask has four dimensions, so transformers builds no mask of its own.
        outputs = super().forward(
            input_ids=input_ids, position_ids=shared_prompts.positions().to(input_ids.device),
            attention_mask=input_ids.new_empty(1, 1, 0, 0),
            shared_prompts=shared_prompts,
            shared_masks=masks(self.config, shared_prompts, self.embed_tokens.weight),
            predicting=predicting, **kwargs)
        if shared_prompts.has_completions:
            predecessors = shared_prompts.predecessors().to(input_ids.device)
            outputs.last_hidden_state = outputs.last_hidden_state[0, predecessors]
        return outputs


class LuminaPolicy(LuminaPreTrainedModel, GenerationMixin):
    """The policy with its head: `policy(input_ids, attention_mask, position_ids).logits`.

    They are (B, L, vocabulary), image tokens included.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # transformers keeps an image encoder besides the decoder.
    _keys_to_ignore_on_load_unexpected = [r"^model\.vqmodel\."]

    def __init__(self, config: LuminaConfig):
        super().__init__(config)
        self.model = LuminaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # one of transformers' loss functions
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
        """Return next-token logits, and with `labels` (-100: not scored) the mean cross-entropy.

        `input_ids` (B, L); `attention_mask` (B, past + L), 1 = attend; `position_ids` (B, L);
        `logits_to_keep`: only the last n positions (0 = all), or a tensor of positions.
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
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size,
                                      **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values,
                                      hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def make_decoder(self, prompts: Sequence[Sequence[int]], prompt_of_row: torch.Tensor,
                     max_new_tokens: int, max_span: int, code_ids: torch.Tensor,
                     cuda_graphs: bool = False, int8_caches: bool = False) -> LuminaDecoder:
        """See `realsr_r1.models.protocol.Policy`."""
        kind = GraphDecoder if cuda_graphs else LuminaDecoder
        return kind(self.model, self.lm_head, prompts, prompt_of_row, max_new_tokens, max_span, code_ids,
                    int8_caches)

    def answer_modules(self) -> list[nn.Module]:
        """Return the head, and the parts of the last layer that follow its attention."""
        last = self.model.layers[-1]
        return [self.lm_head, last.self_attn.o_proj, last.mlp]

    def prepare_for_cold_start(self, dropout: float) -> None:
        """See `realsr_r1.models.protocol.Policy`."""
        convert_inputs_once(self)
        give_norms_one_gradient(self)
        if dropout:
            add_dropout(self, dropout)


FAMILY = Family(config=LuminaConfig, policy=LuminaPolicy, published={PUBLISHED_MODEL_TYPE: "Lumina-mGPT"},
                # transformers' Chameleon folders hold an image encoder, which has no decoder.
                left_out="model.vqmodel.")
