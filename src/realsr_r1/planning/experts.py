"""What the visual experts cost, by name: measured once on random weights, so that planning
downloads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertCost:
    """`parameters` (float32); `image_bytes`, `image_flops`: activations and operations for one
    image of 512 x 512 px.
    """

    parameters: float
    image_bytes: float
    image_flops: float


# pyiqa 0.1.16's networks, float32, one image of 512 px: parameters counted, bytes as live tensors
# at the peak of the forward (scripts/benchmarks/live_bytes.py), operations by torch's
# FlopCounterMode. Two images take twice the bytes and operations of one (CLIP's text, 58e9
# operations once a call, is left out).
COSTS = {
    "topiq_nr": ExpertCost(45.2e6, 122e6, 74e9),
    "musiq": ExpertCost(27.1e6, 109e6, 35e9),
    "maniqa-pipal": ExpertCost(135.7e6, 2281e6, 5601e9),  # it looks at 20 crops of 224 px
    "clipiqa": ExpertCost(102.0e6, 62e6, 64e9),
}
NOTHING = ExpertCost(0.0, 0.0, 0.0)  # PIQE and SSIM have no weights; what one's own expert needs isn't known


def expert_cost(name: str) -> ExpertCost:
    """The cost of an expert; nothing for those without weights and for unknown ones."""
    return COSTS.get(name, NOTHING)
