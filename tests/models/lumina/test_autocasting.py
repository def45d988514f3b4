"""Converting a layer's input once instead of once a matrix changes neither values nor, beyond
rounding, gradients.
"""

from __future__ import annotations

import pytest
import torch

from realsr_r1.models.lumina.layers import convert_inputs_once

from .test_packed_row import make_policy

IDS = torch.arange(5, 25)[None]


def values_and_gradients(policy, autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = policy(input_ids=IDS).logits
    return logits, torch.autograd.grad(logits.float().square().mean(), list(policy.parameters()))


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_values_stay_and_gradients_differ_by_rounding(swin_norm, autocast):
    policy = make_policy(swin_norm=swin_norm)
    expected, own = values_and_gradients(policy, autocast)
    convert_inputs_once(policy)
    found, mine = values_and_gradients(policy, autocast)
    assert torch.equal(found, expected)
    mine, own = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (mine, own))
    assert (mine - own).norm() <= (0.01 if autocast else 0.0) * own.norm()


def test_the_projections_share_one_copy_of_their_input():
    policy = make_policy()
    convert_inputs_once(policy)
    inputs = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        module = getattr(policy.model.layers[0].self_attn, name)
        module.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0]}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        policy(input_ids=IDS)
    assert {states.dtype for states in inputs.values()} == {torch.bfloat16}
    assert len({states.data_ptr() for states in inputs.values()}) == 1
