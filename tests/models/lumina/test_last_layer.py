"""The last layer runs only where something is predicted, and gives there what it gives everywhere.
"""

from __future__ import annotations

import pytest
import torch

from realsr_r1.models.protocol import PackedRow

from .test_packed_row import make_policy

LAYOUT = PackedRow.of_samples((9, 6, 6))
ROW = torch.arange(5, 26)[None]
PLACES = torch.tensor([4, 5, 6, 7, 11, 13, 18, 19, 19])  # the last twice, as rows are filled up


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_and_gradients_are_those_of_all_places(attention, swin_norm, checkpointing):
    policy = make_policy(attention, swin_norm=swin_norm).train()
    if checkpointing:
        policy.gradient_checkpointing_enable()
    torch.manual_seed(0)
    weights = torch.randn(1, len(PLACES), policy.config.vocab_size)
    every = policy(input_ids=ROW, shared_prompts=LAYOUT, use_cache=False).logits[:, PLACES]
    asked = policy(input_ids=ROW, shared_prompts=LAYOUT, use_cache=False, logits_to_keep=PLACES).logits
    torch.testing.assert_close(asked, every, rtol=0, atol=1e-6)
    parameters = list(policy.parameters())
    for mine, own in zip(*(torch.autograd.grad((logits * weights).sum(), parameters)
                           for logits in (asked, every)), strict=True):
        torch.testing.assert_close(mine, own, rtol=0, atol=1e-5 * float(own.abs().max()))


@pytest.mark.parametrize("swin_norm", [False, True])
def test_only_the_last_layers_mlp_sees_fewer_tokens(swin_norm):
    policy, seen = make_policy(swin_norm=swin_norm), []
    for layer in policy.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    policy(input_ids=ROW, shared_prompts=LAYOUT, use_cache=False, logits_to_keep=PLACES)
    assert seen == [ROW.shape[1]] * (len(seen) - 1) + [len(PLACES)]


def test_a_plain_forward_keeps_the_places_it_is_asked_for():
    policy = make_policy()
    assert torch.equal(policy(input_ids=ROW, logits_to_keep=PLACES).logits,
                       policy(input_ids=ROW).logits[:, PLACES])
