"""Short samples in bfloat16 on a CPU: what their attention gives, what it sees, and when it is used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from realsr_r1.models import cpu_attention
from realsr_r1.models.shared_prompt import SharedPrompts, share_prompts

from .test_shared_prompt import make_policy

HEADS, HEAD_DIM, LENGTH = 4, 16, 37


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_values_and_gradients_are_those_of_torchs_attention(key_value_heads):
    torch.manual_seed(0)
    exact = [torch.randn(2, heads, LENGTH, HEAD_DIM, requires_grad=True) for heads in (HEADS, key_value_heads, key_value_heads)]
    weights = torch.randn(2, LENGTH, HEADS, HEAD_DIM)
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True).transpose(1, 2)
    rounded = [states.detach().bfloat16().requires_grad_() for states in exact]
    module = SimpleNamespace(num_key_value_groups=HEADS // key_value_heads)
    found = cpu_attention.attend(module, *rounded, scaling=HEAD_DIM ** -0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    for mine, own in zip(torch.autograd.grad((found * weights).sum(), rounded),
                         torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(mine.float(), own, rtol=0, atol=0.02 * float(own.abs().max()))


def test_a_sample_sees_neither_its_neighbours_nor_what_comes_later(monkeypatch):
    calls = []
    attend = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs))
    policy = make_policy()
    share_prompts(policy.config)
    layout = SharedPrompts.of_samples((5, 4, 6))
    row = torch.arange(5, 20)[None]
    changed = row.clone()
    changed[0, :5], changed[0, 8], changed[0, 9:] = 40, 41, 42  # the neighbours, and the middle sample's last token
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, after = (policy(input_ids=ids, shared_prompts=layout, use_cache=False).logits[0] for ids in (row, changed))
    assert len(calls) == 2 * 3 * policy.config.num_hidden_layers
    assert torch.equal(before[5:8], after[5:8])
    assert not torch.equal(before[8], after[8])


def test_it_is_for_short_bfloat16_samples_without_attention_dropout():
    def values(length, dtype=torch.bfloat16):
        return torch.empty(1, 2, length, 4, dtype=dtype)

    assert cpu_attention.suits(values(cpu_attention.SHORT), dropout=0.0, scaling=1.0)
    assert not cpu_attention.suits(values(cpu_attention.SHORT + 1))
    assert not cpu_attention.suits(values(8, torch.float32))
    assert not cpu_attention.suits(values(8), dropout=0.1)
