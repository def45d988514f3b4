"""The grammar "rows", which is the published code's: only the rows of an image are fixed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts
from .test_engine import compare

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
SIZES = list(LAYOUT.size_ids.values())
CONFIG = RolloutConfig(num_generations=4, max_new_tokens=60, image_top_k_max=200, text_top_k=40, seed=11,
                       grammar="rows")


def policy_that_likes(*tokens: int, strength: float = 6.0):
    """A random policy whose score of these tokens is far above that of most others."""
    policy = make_policy(1)
    with torch.no_grad():
        for token in tokens:
            policy.lm_head.weight[token] *= strength
    return policy


def written(policy, config, prompts=PROMPTS):
    return RolloutEngine(policy, LAYOUT, config).generate(prompts).completion_ids


@pytest.mark.parametrize("guidance", [0.8, 1.0])
@pytest.mark.parametrize("text_top_k", [1, 40])
def test_completions_equal_the_references_draw_by_draw(guidance, text_top_k):
    policy = policy_that_likes(LAYOUT.image_start, SIZES[0], strength=3.0)
    config = dataclasses.replace(CONFIG, guidance_scale=guidance, text_top_k=text_top_k)
    rollout = compare(policy, config, PROMPTS)
    assert any(LAYOUT.image_start in ids for ids in rollout.completion_ids)


def test_sizes_are_drawn_from_the_whole_vocabulary_by_the_rule_of_codes():
    """With a text top-k of 1 sizes still differ, and some are none."""
    policy = policy_that_likes(LAYOUT.image_start, strength=20.0)
    config = dataclasses.replace(CONFIG, num_generations=40, text_top_k=1)
    drawn = {grammar: [ids[place + 1] for ids in written(policy, dataclasses.replace(config, grammar=grammar))
                       for place, token in enumerate(ids[:-1]) if token == LAYOUT.image_start][:80]
             for grammar in ("rows", "image")}
    assert set(drawn["image"]) <= set(SIZES)
    assert len(set(drawn["rows"])) > 3 and not set(drawn["rows"]) <= set(SIZES)


def test_codes_in_text_and_late_image_starts_are_not_banned():
    in_text, late = {}, {}
    for grammar in ("rows", "image"):
        config = dataclasses.replace(CONFIG, grammar=grammar, num_generations=20, max_new_tokens=14,
                                     image_top_k_max=1)
        completions = written(policy_that_likes(*LAYOUT.code_ids[:4]), config)
        in_text[grammar] = any(ids[0] in LAYOUT.code_ids for ids in completions)
        completions = written(policy_that_likes(LAYOUT.image_start), config)
        late[grammar] = any(LAYOUT.image_start in ids[-3:] for ids in completions)
    assert in_text == late == {"rows": True, "image": False}


def test_an_image_that_is_cut_and_one_without_a_size_are_no_images():
    config = dataclasses.replace(CONFIG, num_generations=20)
    completions = written(policy_that_likes(LAYOUT.image_start), config)
    cut = [ids for ids in completions if LAYOUT.image_start in ids and not LAYOUT.find_spans(ids)]
    assert cut and all(len(ids) <= CONFIG.max_new_tokens for ids in completions)
    endless = [ids for ids in cut if ids[ids.index(LAYOUT.image_start) + 2] not in SIZES
               and ids[-1] != LAYOUT.end_of_turn and len(ids) == CONFIG.max_new_tokens]
    assert endless and set(endless[0][endless[0].index(LAYOUT.image_start) + 3:]) <= {
        *LAYOUT.code_ids, LAYOUT.new_line}


@pytest.mark.parametrize("grammar", ["rows", "image"])
@pytest.mark.parametrize("budget", [14, 60])
def test_looking_ahead_keeps_to_the_budget(budget, grammar):
    policy = policy_that_likes(LAYOUT.image_start, SIZES[0], strength=3.0)
    config = dataclasses.replace(CONFIG, jacobi=4, max_new_tokens=budget, num_generations=10, grammar=grammar)
    rollout = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS)
    assert max(map(len, rollout.completion_ids)) == budget
    for ids in rollout.completion_ids:
        assert len(ids) == budget or ids[-1] == LAYOUT.end_of_turn
