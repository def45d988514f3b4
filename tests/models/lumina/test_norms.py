"""RMS norms with one gradient: transformers' values bit for bit, its gradients, and less kept."""

from __future__ import annotations

import pytest
import torch
from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm

from realsr_r1.models.lumina.norms import with_one_gradient

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
    with_one_gradient(norm)
    found = value_and_gradients(norm, states, weights)
    assert torch.equal(found[0], expected[0])
    for mine, own in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype == own.dtype
        torch.testing.assert_close(mine, own, rtol=0, atol=tolerance * float(own.abs().max()))


def test_of_its_input_a_norm_keeps_no_copy_in_float32():
    norm = ChameleonRMSNorm(64).bfloat16()
    with_one_gradient(norm)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        norm(torch.randn(32, 64, dtype=torch.bfloat16, requires_grad=True))
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == 2 * 32 * 64 + 4 * 32 + 2 * 64


def test_the_policys_norms_are_replaced_and_its_weights_keep_their_names():
    policy = make_policy()
    names = list(policy.state_dict())
    with_one_gradient(policy)
    assert not [module for module in policy.modules() if type(module) is ChameleonRMSNorm]
    assert list(policy.state_dict()) == names
