"""The policy in one piece, for rollouts in the middle of training.

It relies on TRL's hook `unwrap_model_for_generation`, see `grpo.trl_hooks`, and on two names of
optimizers: accelerate's and DeepSpeed's have the one that they wrap as `optimizer`, and that of
ZeRO-3 has its float32 weights as `fp32_partitioned_groups_flat`. (A process' part of a parameter
is its `ds_tensor`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import trl.models.utils
from torch import nn
from transformers import PreTrainedModel, Trainer


@contextmanager
def whole_policy(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """Yield the policy of `trainer` without gradient checkpointing, gathered under ZeRO-3.

    All ranks must enter, and the block must end normally: an exception would leave the policy
    without its hooks. Under `--bf16` without DeepSpeed the weights are float32, and the computation
    is in bfloat16, as in the loss.
    """
    unwrap = trl.models.utils.unwrap_model_for_generation
    with (unwrap(trainer.model_wrapped, trainer.accelerator,
                 gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs) as policy,
          trainer.accelerator.autocast()):
        yield policy


class OptimizerStates:
    """What an optimizer keeps from step to step: AdamW's two states and ZeRO-3's float32 weights.

    `optimizer`: torch's, or what wraps it, but not ZeRO-2's, which keeps views of them. What `model`
    itself computes with doesn't belong to it. (DeepSpeed's own `offload_states` takes no other
    optimizer than its FusedAdam.)
    """

    def __init__(self, optimizer: object, model: nn.Module):
        self._of_zero_3: list[torch.Tensor] = []  # torch's optimizer knows them from the first step on
        while hasattr(optimizer, "optimizer"):
            self._of_zero_3 += getattr(optimizer, "fp32_partitioned_groups_flat", [])
            optimizer = optimizer.optimizer
        self.optimizer, self.model = optimizer, model
        self._hosts: dict[int, torch.Tensor] = {}  # of a tensor's id; kept on a GPU: pinning takes seconds

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors of more than one number; AdamW makes its own in the first step."""
        # Of a float32 policy ZeRO-3 has no second copy.
        weights = {_storage(getattr(weight, "ds_tensor", weight)) for weight in self.model.parameters()}
        found = [*self._of_zero_3, *(weight for group in self.optimizer.param_groups
                                     for weight in group["params"])]
        for weight, states in self.optimizer.state.items():
            found += [weight, *(state for state in states.values() if isinstance(state, torch.Tensor))]
        # bitsandbytes moves the paged ones itself.
        return [tensor for tensor in {id(tensor): tensor for tensor in found}.values() if tensor.numel() > 1
                and _storage(tensor) not in weights and not getattr(tensor, "is_paged", False)]

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Hold the tensors in the host's memory inside the block."""
        devices = [(tensor, tensor.device) for tensor in self.tensors()]
        try:
            for tensor, device in devices:
                host = self._hosts.get(id(tensor))
                if host is None or host.shape != tensor.shape:
                    host = torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")
                if device.type == "cuda":
                    self._hosts[id(tensor)] = host
                host.copy_(tensor.detach())
                tensor.data = host
            yield
        finally:
            for tensor, device in devices:
                tensor.data = tensor.data.to(device)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
