"""With `--offload_during_rollout` what an optimizer keeps is elsewhere while rollouts are written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from realsr_r1.training.whole_policy import OptimizerStates


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def trained(weights: list[nn.Parameter]) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    return optimizer


def test_states_are_elsewhere_inside_and_the_same_afterwards(model):
    optimizer = trained(list(model.parameters()))
    states = OptimizerStates(SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer)), model)
    tensors = states.tensors()
    assert sum(tensor.numel() for tensor in tensors) == 2 * 15  # no counters, and no weights of the model
    before, places = [tensor.clone() for tensor in tensors], [tensor.data_ptr() for tensor in tensors]
    weights = [weight.data_ptr() for weight in model.parameters()]
    with pytest.raises(RuntimeError), states.on_host():
        assert all(tensor.data_ptr() != place for tensor, place in zip(tensors, places, strict=True))
        assert [weight.data_ptr() for weight in model.parameters()] == weights
        raise RuntimeError("a rollout that failed")
    assert all(map(torch.equal, tensors, before))
    assert all(map(torch.equal, states.tensors(), before))


def test_zeros_own_float32_weights_go_with_them_from_the_first_step_on(model):
    master = nn.Parameter(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    optimizer = torch.optim.AdamW([master])
    stage_3 = OptimizerStates(SimpleNamespace(optimizer=optimizer, fp32_partitioned_groups_flat=[master]),
                              model)
    optimizer.param_groups[0]["params"] = []  # as DeepSpeed does between steps
    assert stage_3.tensors() == [master]
    optimizer.param_groups[0]["params"] = [master]
    master.grad = torch.ones_like(master)
    optimizer.step()
    optimizer.param_groups[0]["params"] = []
    assert [tensor.numel() for tensor in stage_3.tensors()] == [15] * 3 and stage_3.tensors()[0] is master


def test_weights_that_the_model_computes_with_stay_also_as_parts_of_zero_3(model):
    weight = model.weight
    weight.ds_tensor = weight.detach().flatten()[:6]  # this process' part, and the optimizer's own weights
    master = nn.Parameter(weight.ds_tensor)
    states = OptimizerStates(SimpleNamespace(optimizer=trained([master]),
                                             fp32_partitioned_groups_flat=[master]), model)
    assert [tensor.numel() for tensor in states.tensors()] == [6] * 2
    assert all(tensor is not master for tensor in states.tensors())
