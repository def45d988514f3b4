"""Model folders for tests: the embedded model's tokenizers with a policy that is small, and behaves
as a test needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

HIDDEN = 64
CONSTANT, MARKED, SEEN = 0, 1, 2  # channels of the steered policy's residual stream


def random_policy(folder: Path, processor: ChainProcessor) -> Path:
    """A model folder with a random policy of 0.2 M parameters: it writes junk, quickly."""
    return _save(_new_policy(processor), processor, folder)


def steered_policy(folder: Path, processor: ChainProcessor, logits: Mapping[int, float], ends_after: str = "",
                   but_not_after: str = "") -> Path:
    """A model folder whose policy has the given `logits` (token id -> logit, others 0) at every
    position.

    With `ends_after`, it writes its end-of-turn at once after that question, but not after the
    question `but_not_after`.

    The policy has no biases, so every embedding has a constant channel that `lm_head` reads.
    Questions are told apart by one attention layer whose queries are zero: it averages over the
    prompt, and a channel that only the tokens of `ends_after` have says how many of them there
    were.
    """
    policy = _new_policy(processor)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "layernorm" not in name and name != "model.norm.weight":
                parameter.zero_()
        policy.model.embed_tokens.weight[:, CONSTANT] = 1.0
        marked = list({*processor.encode_text(ends_after)} - {*processor.encode_text(but_not_after)})
        policy.model.embed_tokens.weight[marked, MARKED] = 1.0
        attention = policy.model.layers[0].self_attn
        attention.v_proj.weight[0, MARKED] = 1.0
        attention.o_proj.weight[SEEN, 0] = 1.0
        for token, logit in logits.items():
            # the norm before it makes the channel sqrt(HIDDEN)
            policy.lm_head.weight[token, CONSTANT] = logit / HIDDEN**0.5
        policy.lm_head.weight[processor.layout.end_of_turn, SEEN] = 100.0 if ends_after else 0.0
    return _save(policy, processor, folder)


def _new_policy(processor: ChainProcessor) -> LuminaPolicy:
    torch.manual_seed(0)
    layout = processor.layout
    return LuminaPolicy(LuminaConfig(
        vocab_size=layout.vocab_size, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=layout.pad, bos_token_id=layout.bos,
        eos_token_id=layout.end_of_turn))


def _save(policy: LuminaPolicy, processor: ChainProcessor, folder: Path) -> Path:
    processor.save_pretrained(folder)
    policy.save_pretrained(folder)
    return folder
