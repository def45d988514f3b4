"""RMS norms with one gradient: transformers' values bit for bit, its gradients, and less kept."""

from __future__ import annotations

import pytest
import torch
from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm

from realsr_r1.models.lumina.layers import RMSNorm, give_norms_one_gradient

from .test_packed_row import make_policy


def value_and_gradients(norm, states, weights):
    states = states.clone().requires_grad_()
    norm.zero_grad()
    value = norm(states)
    (value * weights).sum().backward()
    return value.detach(), states.grad, norm.weight.grad.clone()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_values_are_transformers_bit_for_bit_and_gradients_close(dtype, tolerance):
    torch.manual_seed(0)
    norm = ChameleonRMSNorm(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    states, weights = (torch.randn(2, 9, 48, dtype=dtype) for _ in range(2))
    expected = value_and_gradients(norm, states, weights)
    ours = RMSNorm(48, eps=1e-5).to(dtype)
    ours.load_state_dict(norm.state_dict())
    for mine, own in zip(value_and_gradients(ours, states, weights), expected, strict=True):
        assert torch.equal(mine, own)  # GRPO trains with transformers' gradients
    give_norms_one_gradient(ours)
    found = value_and_gradients(ours, states, weights)
    assert torch.equal(found[0], expected[0])
    for mine, own in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype == own.dtype
        torch.testing.assert_close(mine, own, rtol=0, atol=tolerance * float(own.abs().max()))


def test_of_its_input_a_norm_keeps_no_copy_in_float32():
    norm = RMSNorm(64).bfloat16()
    give_norms_one_gradient(norm)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor,
                                                  lambda tensor: tensor):
        norm(torch.randn(32, 64, dtype=torch.bfloat16, requires_grad=True))
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == 2 * 32 * 64 + 4 * 32 + 2 * 64


def test_only_a_policy_prepared_for_the_cold_start_has_norms_with_one_gradient():
    policy = make_policy()
    norms = [module for module in policy.modules() if isinstance(module, ChameleonRMSNorm)]
    assert len(norms) == 2 * len(policy.model.layers) + 1 and not any(norm.has_one_gradient for norm in norms)
    names = list(policy.state_dict())
    policy.prepare_for_cold_start(dropout=0.0)
    assert all(norm.has_one_gradient for norm in norms) and list(policy.state_dict()) == names
