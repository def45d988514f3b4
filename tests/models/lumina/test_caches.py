"""Keys and values as int8: a quarter of float32's memory, and nearly the same states."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.models.lumina.caches import as_int8
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from ...rollout.helpers import CODES, make_layout, make_policy, make_prompts

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
CHAIN = RolloutConfig(num_generations=2, max_new_tokens=135, image_top_k_max=200, grammar="chain",
                      max_text_tokens=6, seed=11, cache_dtype="int8")


def test_a_vector_is_wrong_by_half_a_step_of_its_own_at_most():
    torch.manual_seed(0)
    vectors = torch.randn(50, 2, 64) * torch.logspace(-6, 6, 50)[:, None, None]
    vectors[7, 1] = 0
    numbers, scales = as_int8(vectors)
    assert numbers.dtype == torch.int8 and scales.shape == (50, 2)
    assert torch.allclose(scales, vectors.abs().amax(-1) / 127)
    wrong = (numbers * scales[..., None] - vectors).abs()
    assert (wrong <= scales[..., None] * 0.501).all() and (wrong[7, 1] == 0).all()


def states_of(int8: bool, dtype=torch.float32) -> tuple[torch.Tensor, object]:
    """What three passes give over unequal groups with branches, when rows have left before the last."""
    rows = torch.tensor([0, 0, 1, 2, 2])
    decoder = make_policy(3, dtype).make_decoder(PROMPTS, rows, 64, 48, torch.tensor(CODES), int8_caches=int8)
    found = list(decoder.step(rows + 11, rows[:0], rows[:0], 0))
    branches = torch.arange(5)
    starts = torch.tensor([1, 1, 1, 1, 1])
    found += decoder.feed(torch.arange(15).view(5, 3) + 10, starts, 4, branches, 0 * starts, 3)
    kept = torch.tensor([1, 3, 4])
    decoder.keep_rows(kept)
    decoder.keep_slots(kept, 3)
    found += decoder.feed(torch.arange(6).view(3, 2) + 20, starts[:3] + 3, 6, branches[:3], starts[:3] + 2, 5)
    return torch.cat([states.flatten(0, -2) for states in found]), decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_computes_nearly_the_same_with_a_quarter_of_the_memory(dtype):
    exact, plain = states_of(False, dtype)
    rounded, decoder = states_of(True, dtype)
    assert rounded.dtype == exact.dtype
    error = (rounded - exact).float().norm() / exact.float().norm()
    assert 0 < error < 0.02
    for name in ("shared", "own", "unconditional"):
        (before, after) = (sum(tensor.nbytes for tensor in getattr(of, name)[0].tensors())
                           for of in (plain, decoder))
        assert after == before / dtype.itemsize * (1 + 4 / 8)  # a float32 scale for each head of 8 numbers


@pytest.mark.parametrize("jacobi", [1, 4])
def test_a_completion_does_not_depend_on_its_neighbours(jacobi):
    config = dataclasses.replace(CHAIN, jacobi=jacobi)
    engine = RolloutEngine(make_policy(3), LAYOUT, config)
    together = engine.generate(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        alone = engine.generate(prompt, first_row=2 * number)
        assert alone.completion_ids == together.completion_ids[2 * number:2 * number + 2]
    exact = RolloutEngine(engine.policy, LAYOUT, dataclasses.replace(config, cache_dtype="auto"))
    assert exact.generate(PROMPTS).log_q != together.log_q


def test_another_type_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match="cache_dtype is 'fp4'; it must be one of auto, int8"):
        dataclasses.replace(CHAIN, cache_dtype="fp4")
