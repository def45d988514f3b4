"""What leaves a GPU's memory is really gone from it. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from realsr_r1.training.whole_policy import OptimizerStates


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU whose memory would be free")
def test_an_optimizers_states_leave_it_and_come_back():
    model = nn.Linear(1024, 1024, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1024, device="cuda")).sum().backward()
    optimizer.step()
    states = OptimizerStates(optimizer, model)
    for _ in range(2):
        held, before = torch.cuda.memory_allocated(), [tensor.clone().cpu() for tensor in states.tensors()]
        with states.on_host():
            assert held - torch.cuda.memory_allocated() >= 2 * 4 * 1024**2
        assert torch.cuda.memory_allocated() == held
        assert all(torch.equal(tensor.cpu(), old) for tensor, old in
                   zip(states.tensors(), before, strict=True))
