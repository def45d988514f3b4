"""Speculative Jacobi Decoding draws from the same distribution as plain decoding, in fewer forward
passes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from realsr_r1.core.errors import UserError
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts
from .reference import ReferenceEngine

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
CONFIG = RolloutConfig(num_generations=3, max_new_tokens=135, image_top_k_max=200, text_top_k=40,
                       grammar="chain", max_text_tokens=6, seed=11, jacobi=4)


def generate(policy, config, prompts=PROMPTS, layout=LAYOUT, **place):
    return RolloutEngine(policy, layout, config).generate(prompts, **place)


def one_image(codes: int, units: int, **settings):
    """A layout with this many codes for chains of one square image and nothing else, and a config
    for these.
    """
    layout = make_layout(tuple(range(10, 10 + codes)))
    form = layout.chain_form
    config = RolloutConfig(max_new_tokens=layout.span_length(units, units) + 6, grammar="chain", seed=5,
                           **settings)
    config.image_sizes = [(units, units)]
    return dataclasses.replace(layout,
                               chain_form=dataclasses.replace(form, sections=form.sections[2:3])), config


@pytest.mark.parametrize("guidance", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("grammar", ["image", "chain"])
def test_where_codes_leave_no_choice_it_writes_what_plain_decoding_writes(grammar, guidance):
    """Mixed batches: text is drawn with plain decoding's random numbers, so rows come to images at
    different times.
    """
    policy = make_policy(1)
    with torch.no_grad():
        policy.lm_head.weight[[LAYOUT.image_start, LAYOUT.end_of_turn]] *= 2
    config = dataclasses.replace(CONFIG, grammar=grammar, guidance_scale=guidance, image_top_k_max=1)
    plain = generate(policy, dataclasses.replace(config, jacobi=1))
    sizes = {(len(span.codes), len(span.codes[0])) for ids in plain.completion_ids
             for span in LAYOUT.find_spans(ids)}
    assert len(sizes) >= 3 and len(set(map(len, plain.completion_ids))) >= 3
    assert plain.forwards == [len(ids) for ids in plain.completion_ids]
    for window in (2, 5, 16):
        ahead = generate(policy, dataclasses.replace(config, jacobi=window))
        assert ahead.completion_ids == plain.completion_ids
        assert ahead.sampled_mask == plain.sampled_mask
        for drawn_with, expected in zip(ahead.log_q, plain.log_q, strict=True):
            assert drawn_with == pytest.approx(expected, abs=1e-9)
        assert sum(ahead.forwards) < sum(plain.forwards)


@pytest.mark.parametrize(("window", "guidance"), [(2, 1.0), (3, 0.8), (6, 3.0)])
def test_images_have_the_references_distribution(window, guidance):
    """Chi-square over all images of 2 x 2 codes, 20,000 draws, against their exact probabilities.
    """
    policy, prompt = make_policy(2, num_hidden_layers=1), PROMPTS[0]
    layout, config = one_image(4, 1, num_generations=20_000, guidance_scale=guidance, image_top_k_max=100,
                               jacobi=window)
    rollout = generate(policy, config, prompt, layout)
    truth, before = ReferenceEngine(policy, layout, config), rollout.completion_ids[0][:5]
    assert all(ids[:5] == before for ids in rollout.completion_ids)
    expected = {(): 1.0}
    for _ in range(6):  # two codes and a new line, twice
        longer = {}
        for ids, probability in expected.items():
            written = before + list(ids)
            choices = truth.choices(prompt, written)
            following = [1.0] if len(choices) == 1 else truth.probabilities(truth.logits(prompt + written),
                                                                            written, choices)
            longer |= {(*ids, token): probability * value
                       for token, value in zip(choices, following, strict=True) if value > 0}
        expected = longer
    counts = Counter(tuple(ids[5:11]) for ids in rollout.completion_ids)
    assert set(counts) <= set(expected) and 20 < len(expected) < 4**4
    for ids, drawn_with in zip(rollout.completion_ids[:50], rollout.log_q, strict=False):
        assert sum(drawn_with) == pytest.approx(math.log(expected[tuple(ids[5:11])]))
    rare = {ids for ids, probability in expected.items() if probability * config.num_generations < 5}
    cells = [[ids]
             for ids in set(expected) - rare] + [list(rare)] * (sum(expected[ids] for ids in rare) > 5e-4)
    observed, exact = ([sum(table[ids] for ids in cell) for cell in cells] for table in (counts, expected))
    exact = [value / sum(exact) * sum(observed) for value in exact]
    assert chisquare(observed, exact).pvalue > 0.001


def test_a_completion_does_not_depend_on_its_neighbours():
    policy = make_policy(4)
    together = generate(policy, CONFIG)
    assert len(set(map(tuple, together.completion_ids))) == 9
    alone = dataclasses.replace(CONFIG, num_generations=1)
    for row in (0, 4, 8):
        assert generate(policy, alone, PROMPTS[row // 3],
                        first_row=row).completion_ids == [together.completion_ids[row]]
    assert generate(policy, CONFIG, PROMPTS[1:], first_row=3).completion_ids == together.completion_ids[3:]


def test_chains_are_well_formed_and_of_plain_decodings_likelihood():
    """Rows in text, in images of three sizes and finished, with guidance, in one batch."""
    policy = make_policy(5)
    config = dataclasses.replace(CONFIG, num_generations=30)
    plain, ahead = (generate(policy, dataclasses.replace(config, jacobi=window)) for window in (1, 6))
    for row, ids in enumerate(ahead.completion_ids):
        assert len(LAYOUT.find_spans(ids)) == 3 and ids[-1] == LAYOUT.end_of_turn
        assert len(ids) == len(ahead.sampled_mask[row]) == len(ahead.log_q[row])
    assert sum(ahead.forwards) < 0.95 * sum(map(len, ahead.completion_ids))
    codes = set(LAYOUT.code_ids)
    means = [torch.tensor([value for ids, drawn in zip(rollout.completion_ids, rollout.log_q, strict=True)
                           for token, value in zip(ids, drawn, strict=True) if token in codes]).mean()
             for rollout in (plain, ahead)]
    assert means[0].item() == pytest.approx(means[1].item(), abs=0.05)


def test_drafts_that_are_right_are_all_kept():
    """A policy that finds all codes alike: the first drafts are already draws from its
    distribution.
    """
    policy = make_policy(6)
    torch.nn.init.zeros_(policy.get_input_embeddings().weight)
    for window in (2, 8):
        layout, config = one_image(16, 3, image_top_k_max=4000, jacobi=window)
        rollout = generate(policy, config, PROMPTS[0], layout)
        # Tag and image start, of which the prompt's forward gives the first; sizes; body and image
        # end; tag, end-of-turn.
        runs = (2, 2, layout.span_length(3, 3) - 3, 4)
        assert {len(ids) for ids in rollout.completion_ids} == {1 + sum(runs)}
        assert set(rollout.forwards) == {1 + sum(math.ceil(run / window) for run in runs)}
    assert len(set(map(tuple, rollout.completion_ids))) == 5


def test_lora_policies_other_layer_orders_and_bfloat16_work_too():
    for policy in (make_policy(3, swin_norm=True, model_parallel_size=2), make_policy(7, torch.bfloat16)):
        config = dataclasses.replace(CONFIG, num_generations=1, image_top_k_max=1, text_top_k=1)
        written = generate(policy, config).completion_ids
        if policy.dtype != torch.bfloat16:  # rounding decides otherwise there
            assert written == generate(policy, dataclasses.replace(config, jacobi=0)).completion_ids
        assert all(len(LAYOUT.find_spans(ids)) == 3 for ids in written)


def test_a_policy_that_has_diverged_is_named_and_a_senseless_window_too():
    policy = make_policy(8)
    with torch.no_grad():
        policy.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        generate(policy, CONFIG)
    with pytest.raises(UserError, match="jacobi is -1"):
        RolloutConfig(jacobi=-1)
