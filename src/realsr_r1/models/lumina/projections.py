"""A layer's matrices as the passes of a rollout use them: with few operations, adapters included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BLOCK, FEWEST_OUTPUTS = 128, 1024  # rows of a matrix that a CPU multiplies at once; below, all of them


def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply few states (n, inputs) with a matrix (outputs, inputs): (n, outputs).

    On a CPU MKL's threads share a product of few rows badly, and a batch of products well. So a
    large float32 matrix is taken in blocks: with two threads and 5 to 16 rows that is 0.65 to 0.8 of
    the time, with one thread it is no worse (docs/speed.md).
    """
    if not _goes_in_blocks(weight):
        return F.linear(states, weight)
    whole = len(weight) // BLOCK * BLOCK
    blocks = weight[:whole].unflatten(0, (-1, BLOCK)).transpose(1, 2)
    found = torch.matmul(states, blocks).transpose(0, 1).flatten(1)
    return found if whole == len(weight) else torch.cat((found, F.linear(states, weight[whole:])), dim=1)


def _goes_in_blocks(weight: torch.Tensor) -> bool:
    is_float32 = weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return weight.device.type == "cpu" and is_float32 and len(weight) >= FEWEST_OUTPUTS


class Projection:
    """A linear layer with its LoRA adapter (arXiv 2106.09685), as it is at this moment.

    An adapter's matrices are taken in `dtype`, that of the states, and its scale is multiplied into
    one of them. They aren't merged into the weights: in bfloat16 a change of less than half a step
    of a weight would be lost. Layers with more than that (several adapters, DoRA, a bias in an
    adapter) are called as they are.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        self.base, self.down, self.up = layer, None, None
        name = _adapter(layer)
        if name is not None:
            self.base = layer.get_base_layer()
            self.down = layer.lora_A[name].weight.to(dtype)  # (r, inputs)
            self.up = (layer.lora_B[name].weight * layer.scaling[name]).to(dtype)  # (outputs, r)

    def __call__(self, inside: torch.Tensor) -> torch.Tensor:
        """Project states (B, inputs)."""
        is_plain = type(self.base) is nn.Linear and self.base.bias is None
        found = product(inside, self.base.weight) if is_plain else self.base(inside)
        return self._adapted(found, inside)

    def added(self, states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Add what the layer makes of `inside` to `states`, in one operation where it is a plain matrix.

        Layers in few bits are called as they are; so is all under autocast, which would round the
        states.
        """
        base = self.base
        is_plain = type(base) is nn.Linear and base.bias is None and base.weight.dtype == states.dtype
        if is_plain and inside.dtype == states.dtype and not _goes_in_blocks(base.weight):
            return self._adapted(torch.addmm(states, inside, base.weight.t()), inside)
        return states + self(inside)

    def _adapted(self, result: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        if self.down is None:
            return result
        low = F.linear(inside, self.down)
        if low.dtype != result.dtype:  # under autocast, of layers in few bits
            return result + F.linear(low, self.up)
        return torch.addmm(result, low, self.up.t())


def _adapter(layer: nn.Module) -> str | None:
    """Return the name of the one plain adapter of a PEFT layer."""
    if not (hasattr(layer, "lora_A") and hasattr(layer, "lora_variant")):
        return None
    if len(layer.active_adapters) != 1 or layer.disable_adapters or layer.merged:
        return None
    [name] = layer.active_adapters
    if name in layer.lora_variant or name not in layer.lora_A or layer.lora_B[name].bias is not None:
        return None
    return name


class LayerProjections:
    """The seven matrices of a layer."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.query, self.key, self.value, self.output, self.gate, self.up, self.down = (
            Projection(matrix, dtype) for matrix in (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj,
                mlp.up_proj, mlp.down_proj))
        self.activation = mlp.act_fn

    def gated(self, states: torch.Tensor) -> torch.Tensor:
        """Return what goes into the MLP's last matrix, (B, intermediate)."""
        return self.activation(self.gate(states)) * self.up(states)
