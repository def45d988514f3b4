"""What the visual experts cost, by name, so that planning downloads nothing.

The costs were measured once on random weights.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertCost:
    """The cost of one expert.

    `parameters` (float32). `image_bytes`, `image_flops`: bytes of activations and operations for
    one image of 512 x 512 px.
    """

    parameters: float
    image_bytes: float
    image_flops: float


# For pyiqa 0.1.16's networks in float32 and one image of 512 px. The parameters are counted, the
# bytes are those of live tensors at the peak of the forward (scripts/benchmarks/live_bytes.py), and
# the operations come from torch's FlopCounterMode. Two images take twice the bytes and operations.
# CLIP's text takes 58e9 operations in each call, which are left out.
COSTS = {
    "topiq_nr": ExpertCost(45.2e6, 122e6, 74e9),
    "musiq": ExpertCost(27.1e6, 109e6, 35e9),
    "maniqa-pipal": ExpertCost(135.7e6, 2281e6, 5601e9),  # it looks at 20 crops of 224 px
    "clipiqa": ExpertCost(102.0e6, 62e6, 64e9),
}
NOTHING = ExpertCost(0.0, 0.0, 0.0)  # PIQE and SSIM have no weights; your own expert's cost isn't known


def expert_cost(name: str) -> ExpertCost:
    """Return the cost of an expert, which is nothing for unknown ones and those without weights.

    `name`: as in `--experts`, so a weight and a range may follow after colons.
    """
    return COSTS.get(name.partition(":")[0], NOTHING)
