"""Rotary positions and attention of packed rows: transformers' values and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.models.chameleon.modeling_chameleon import ChameleonAttention, apply_rotary_pos_emb

from realsr_r1.models.lumina.attention import LuminaAttention, rotate
from realsr_r1.models.protocol import PackedRow

from .test_packed_row import make_policy

TOKENS, HEADS, HEAD_DIM = 37, 3, 16


def test_rotation_and_its_gradient_are_transformers_bit_for_bit():
    torch.manual_seed(0)
    states, weights = (torch.randn(TOKENS, HEADS, HEAD_DIM, requires_grad=True) for _ in range(2))
    angles = torch.randn(TOKENS, HEAD_DIM // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    expected = apply_rotary_pos_emb(states[None], states[None], cos[None], sin[None], unsqueeze_dim=2)[0][0]
    found = rotate(states, cos[:, None], sin[:, None])
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad((rotated * weights).sum(), states)[0]
                         for rotated in (found, expected)))


def test_a_layers_attention_is_built_once(monkeypatch):
    """A second one takes time, and random numbers: a seed would no longer give the weights it gave.
    """
    built = []
    build = ChameleonAttention.__init__
    monkeypatch.setattr(ChameleonAttention, "__init__", lambda self, *args, **named: built.append(1)
                        or build(self, *args, **named))
    policy = make_policy()
    assert len(built) == policy.config.num_hidden_layers
    assert {type(layer.self_attn) for layer in policy.model.layers} == {LuminaAttention}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_dropout_drops_in_training_what_a_plain_forward_drops(attention):
    policy = make_policy(attention, attention_dropout=0.5).train()
    ids = torch.arange(5, 25)[None]

    def logits(**kwargs):
        torch.manual_seed(0)
        return policy(input_ids=ids, use_cache=False, **kwargs).logits

    layout = PackedRow.of_samples([20])
    dropped = logits(shared_prompts=layout)
    assert torch.equal(dropped, logits())
    policy.eval()
    assert torch.equal(logits(shared_prompts=layout), logits()) and not torch.equal(dropped, logits())


def test_a_cache_beside_a_packed_row_is_refused():
    with pytest.raises(ValueError, match="past_key_values"):
        make_policy()(input_ids=torch.arange(5, 25)[None], shared_prompts=PackedRow.of_samples([20]),
                      past_key_values=DynamicCache())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"swin_norm": True}], ids=str)
def test_a_sample_in_float32_has_the_states_of_a_plain_forward(attention, changes):
    policy = make_policy(attention, **changes)
    ids = torch.arange(5, 25)[None]
    packed = policy(input_ids=ids, shared_prompts=PackedRow.of_samples([20]), use_cache=False).logits
    assert torch.equal(packed, policy(input_ids=ids).logits)
