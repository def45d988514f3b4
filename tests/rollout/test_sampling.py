"""Draws have the distribution they should have, and random numbers the place they should have."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare, kstest

from realsr_r1.rollout import RolloutConfig, RolloutEngine
from realsr_r1.rollout.sampling import couple, draw, entropy_top_k, uniforms

from . import reference
from .helpers import make_layout, make_policy, make_prompts

LAYOUT = make_layout()
PROMPT = make_prompts(LAYOUT)[0]
DRAWS = 20_000


def assert_drawn_from(tokens: list[int], probabilities: dict[int, float]) -> None:
    """Chi-square of 20,000 draws, fixed seeds; nothing outside the support is ever drawn."""
    counts = Counter(tokens)
    support = {token: value for token, value in probabilities.items() if value > 0}
    assert set(counts) <= set(support)
    expected = torch.tensor(list(support.values()), dtype=torch.float64) * len(tokens)
    assert expected.min() >= 5
    assert chisquare([counts[token] for token in support], expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("top_k", [5, 50])
def test_text_is_drawn_from_the_references_distribution(top_k):
    policy = make_policy(1, spread=0.15)
    config = RolloutConfig(num_generations=DRAWS, max_new_tokens=1, text_top_k=top_k)
    rollout = RolloutEngine(policy, LAYOUT, config).generate(PROMPT)
    truth = reference.ReferenceEngine(policy, LAYOUT, config)
    choices = truth.choices(PROMPT, [])
    probabilities = truth.probabilities(truth.logits(PROMPT), [], choices)
    assert_drawn_from([ids[0] for ids in rollout.completion_ids],
                      dict(zip(choices, probabilities, strict=True)))


@pytest.mark.parametrize("guidance", [0.8, 1.0, 3.0])
def test_codes_are_drawn_from_the_references_distribution(guidance):
    policy = make_policy(2, spread=0.15)
    form = LAYOUT.chain_form
    layout = dataclasses.replace(LAYOUT, chain_form=dataclasses.replace(form, sections=form.sections[2:3]))
    config = RolloutConfig(num_generations=DRAWS, max_new_tokens=20, grammar="chain", guidance_scale=guidance,
                           image_top_k_max=120)
    config.image_sizes = [(1, 1)]  # a chain of one image
    rollout = RolloutEngine(policy, layout, config).generate(PROMPT)
    before = rollout.completion_ids[0][:5]
    assert all(ids[:5] == before for ids in rollout.completion_ids)
    truth = reference.ReferenceEngine(policy, layout, config)
    choices = truth.choices(PROMPT, before)
    probabilities = truth.probabilities(truth.logits(PROMPT + before), before, choices)
    assert 0 < sum(value > 0 for value in probabilities) < len(choices)
    assert_drawn_from([ids[5] for ids in rollout.completion_ids],
                      dict(zip(choices, probabilities, strict=True)))


def test_drafts_of_one_distribution_become_draws_from_another_and_few_change():
    generator = torch.Generator().manual_seed(3)
    before = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0, 0.0], dtype=torch.float64)
    after = torch.tensor([0.1, 0.35, 0.0, 0.1, 0.25, 0.2], dtype=torch.float64)
    drafts = torch.multinomial(before, DRAWS, replacement=True, generator=generator)
    uniform = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    tables = before.expand(DRAWS, 6), after.expand(DRAWS, 6)
    coupled = couple(drafts, *tables, uniform)
    assert_drawn_from(coupled.tolist(), dict(enumerate(after.tolist())))
    stayed = (coupled == drafts).double().mean().item()
    assert stayed == pytest.approx(torch.minimum(before, after).sum().item(), abs=0.02)
    replaced = coupled[drafts == 2]  # which it was drawn instead of says nothing about the draft
    excess = (after - before).clamp(min=0)
    assert_drawn_from(replaced.tolist(), dict(enumerate((excess / excess.sum()).tolist())))
    assert torch.equal(couple(drafts, tables[0], tables[0], uniform), drafts)


def test_random_numbers_are_the_references_uniform_and_without_visible_order():
    numbers = uniforms(7, 3, torch.arange(5, 9), 6)
    expected = [[reference.uniform(7, 3, row, position) for position in range(6)] for row in range(5, 9)]
    assert numbers.tolist() == expected
    assert uniforms(-1, 0, torch.tensor([0]), 1).item() == reference.uniform(-1, 0, 0, 0)
    many = uniforms(0, 0, torch.arange(200), 200)
    assert many.min() >= 0 and many.max() < 1
    assert kstest(many.flatten().numpy(), "uniform").pvalue > 0.001
    several = uniforms(7, 3, torch.arange(5, 9), 6, draws=50)
    assert several.shape == (4, 6, 50) and len({*several.flatten().tolist(),
                                                *numbers.flatten().tolist()}) == 4 * 6 * 51
    assert kstest(several.flatten().numpy(), "uniform").pvalue > 0.001
    shifted = torch.stack([many[:-1, :-1].flatten(), many[1:, :-1].flatten(), many[:-1, 1:].flatten()])
    assert (torch.corrcoef(shifted) - torch.eye(3)).abs().max() < 0.02


def test_ties_at_the_edge_of_top_k_are_kept():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]).expand(1000, 5)
    choices, log_q = draw(scores, 2, 1.0, torch.linspace(0, 0.999, 1000, dtype=torch.float64))
    assert choices.unique().tolist() == [1, 2, 3]
    expected = torch.tensor([3.0, 2.0, 2.0]).log_softmax(0)[[0, 1, 2]]
    assert torch.allclose(log_q.unique().float(), expected.unique(), atol=1e-6)


def test_the_edges_of_the_unit_interval_stay_inside_the_support():
    scores = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]]).expand(2, 4)
    choices, _ = draw(scores, 4, 0.9, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert choices.tolist() == [1, 2]


def test_top_k_follows_the_entropy():
    sure = torch.zeros(4000)
    sure[0] = 1000.0
    scores = torch.stack([sure, torch.zeros(4000)])
    uniform_k = round(1 + 1999 / (1 + 2.718281828459045 ** -(torch.tensor(4000.0).log().item() - 5)))
    assert entropy_top_k(scores, 1, 2000).tolist() == [14, uniform_k]  # 14 at H = 0
    assert entropy_top_k(scores[:, :10], 1, 2000).tolist() == [10, 10]
    assert entropy_top_k(scores, 3, 3).tolist() == [3, 3]
