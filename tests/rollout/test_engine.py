"""The engine writes what the simple reference writes, whatever is computed beside it."""

from __future__ import annotations

import math

import pytest
import torch
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts
from .reference import ReferenceEngine


def compare(policy, layout, config, prompts, step=0):
    rollout = RolloutEngine(policy, layout, config).generate(prompts, step=step)
    reference = ReferenceEngine(policy, layout, config)
    ratios = []
    for row, (ids, mask) in enumerate(zip(rollout.completion_ids, rollout.sampled_mask, strict=True)):
        expected, sampled, ratio = reference.generate(prompts[row // config.num_generations], step, row)
        assert ids == expected, row
        assert mask == sampled, row
        ratios += ratio
    assert math.isclose(rollout.log_ratio, sum(ratios) / max(len(ratios), 1), rel_tol=1e-4, abs_tol=1e-5)
    return rollout


@pytest.mark.parametrize("guidance", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("grammar", ["image", "chain"])
@pytest.mark.parametrize("top_k", [1, 5])
def test_engine_equals_the_reference_in_mixed_batches(grammar, guidance, top_k):
    layout = make_layout()
    config = RolloutConfig(num_generations=2, max_new_tokens=70 if grammar == "image" else 135, guidance_scale=guidance, text_top_k=top_k,
                           image_top_k_max=1 if top_k == 1 else 200, grammar=grammar, max_text_tokens=6, seed=11)
    compare(make_policy(), layout, config, make_prompts(layout), step=4)
