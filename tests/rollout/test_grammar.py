"""What the two grammars promise of every completion, whatever the policy says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
FORM = LAYOUT.chain_form
SIZES = [(1, 1), (2, 1), (1, 3)]
# Tags (2 + 3 ids a section), three spans, end-of-turn: what a chain with empty texts takes.
SHORTEST = 7 * 5 + sum(LAYOUT.span_length(*size) for size in SIZES) + 1


def write_chains(**changes):
    settings = dict(num_generations=8, max_new_tokens=SHORTEST + 60, image_sizes=SIZES, grammar="chain",
                    max_text_tokens=9, text_top_k=50)
    config = RolloutConfig(**{**settings, **changes})
    return RolloutEngine(make_policy(spread=0.2), LAYOUT, config).generate(PROMPTS[1])


def read_chain(ids, mask):
    """Bodies of a completion's text sections; fails unless everything else is exactly the chain's,
    and not sampled.
    """
    bodies, position = [], 0
    sizes = iter(SIZES)

    def expect(expected, sampled=0):
        nonlocal position
        assert ids[position:position + len(expected)] == list(expected)
        assert all(value == sampled for value in mask[position:position + len(expected)])
        position += len(expected)

    for section in FORM.sections:
        expect(section.open_ids)
        if section.is_image:
            rows, columns = next(sizes)
            expect((LAYOUT.image_start, LAYOUT.size_ids[rows], LAYOUT.size_ids[columns]))
            for _ in range(2 * rows):
                assert set(ids[position:position + 2 * columns]) <= set(LAYOUT.code_ids)
                expect(ids[position:position + 2 * columns], sampled=1)
                expect((LAYOUT.new_line,))
            expect((LAYOUT.image_end, *section.close_ids))
        else:
            stop = ids.index(section.close_ids[0], position)
            bodies.append(ids[position:stop])
            expect(bodies[-1], sampled=1)
            bodies.append(mask[position])
            expect(ids[position:position + 1], sampled=mask[position])
            expect(section.close_ids[1:])
    expect((LAYOUT.end_of_turn,))
    assert position == len(ids)
    return bodies[::2], bodies[1::2]


def test_every_chain_is_well_formed_and_only_texts_and_codes_are_sampled():
    rollout = write_chains()
    seen = set()
    for ids, mask in zip(rollout.completion_ids, rollout.sampled_mask, strict=True):
        assert [(len(span.codes) // 2, len(span.codes[0]) // 2) for span in LAYOUT.find_spans(ids)] == SIZES
        for body, chose_to_close in zip(*read_chain(ids, mask), strict=True):
            assert set(body) <= set(FORM.body_ids)
            assert len(body) <= 9
            assert chose_to_close == (len(body) < 9)  # at its longest, a body is closed by force
            seen.add(len(body) < 9)
    assert seen == {True, False}


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_texts_are_cut_so_that_a_chain_always_fits(spare):
    rollout = write_chains(max_new_tokens=SHORTEST + spare, max_text_tokens=100)
    for ids, mask in zip(rollout.completion_ids, rollout.sampled_mask, strict=True):
        bodies, _ = read_chain(ids, mask)
        assert len(ids) == SHORTEST + sum(map(len, bodies)) <= SHORTEST + spare


def test_image_sizes_follow_the_prompts_last_image():
    config = RolloutConfig(num_generations=1, max_new_tokens=150, grammar="chain", max_text_tokens=2)
    rollout = RolloutEngine(make_policy(), LAYOUT, config).generate(PROMPTS)
    sizes = [[(len(span.codes) // 2, len(span.codes[0]) // 2) for span in LAYOUT.find_spans(ids)]
             for ids in rollout.completion_ids]
    assert sizes == [[(1, 1)] * 3, [(1, 1), (1, 1), (2, 1)], [(1, 1), (2, 2), (3, 3)]]


@pytest.mark.parametrize("budget", [3, 9, 10, 13, 14, 29, 47])
def test_under_the_image_grammar_no_span_is_cut_and_nothing_of_it_stands_outside(budget):
    policy = make_policy(spread=0.1)
    with torch.no_grad():  # a policy that loves images
        policy.lm_head.weight[LAYOUT.image_start] *= 8
    config = RolloutConfig(num_generations=12, max_new_tokens=budget, text_top_k=3)
    rollout = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS[:2])
    only_inside = {*LAYOUT.code_ids, *LAYOUT.size_ids.values(), LAYOUT.image_start, LAYOUT.image_end,
                   LAYOUT.new_line}
    images = 0
    for ids, mask in zip(rollout.completion_ids, rollout.sampled_mask, strict=True):
        assert len(ids) == len(mask) <= budget
        spans = LAYOUT.find_spans(ids)
        images += len(spans)
        inside = {position for span in spans for position in range(span.start, span.stop)}
        for position, token in enumerate(ids):
            assert token < LAYOUT.vocab_size and token not in (LAYOUT.pad, LAYOUT.bos)
            assert (token in only_inside) == (position in inside)
            assert not (token in (LAYOUT.new_line, LAYOUT.image_end) and mask[position])
            assert mask[position] or position in inside
    assert bool(images) == (budget >= LAYOUT.span_length(1, 1))


def test_a_size_that_is_the_only_one_to_fit_is_not_counted_as_sampled():
    policy = make_policy()
    with torch.no_grad():
        policy.lm_head.weight[LAYOUT.image_start] *= 8
    config = RolloutConfig(num_generations=20, max_new_tokens=13, text_top_k=40)
    rollout = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS[0])
    rows = zip(rollout.completion_ids, rollout.sampled_mask, strict=True)
    masks = [mask[span.start:span.start + 4] for ids, mask in rows for span in LAYOUT.find_spans(ids)]
    assert masks and all(mask == [1, 0, 0, 1] for mask in masks)


@pytest.mark.parametrize(("changes", "words"), [
    ({"num_generations": 0}, "num_generations"), ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"temperature": 0}, "temperature"),
    ({"text_top_k": 0}, "text_top_k"), ({"image_top_k_min": 0}, "image_top_k_min"),
    ({"image_top_k_max": 1, "image_top_k_min": 2}, "image_top_k_max"), ({"grammar": "free"}, "image, chain"),
    ({"image_sizes": []}, "for each image"),
    ({"image_sizes": [(1, 1), (0, 1), (1, 1)]}, "image_sizes"),
    ({"guidance_scale": float("nan")}, "guidance_scale"), ({"max_text_tokens": -1}, "max_text_tokens"),
])
def test_settings_that_make_no_sense_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        RolloutConfig(**changes)


def test_a_chain_that_cannot_be_written_is_refused_with_the_reason():
    with pytest.raises(UserError, match=f"take {SHORTEST} tokens"):
        write_chains(max_new_tokens=SHORTEST - 1)
    with pytest.raises(UserError, match="4 x 1 grid units"):
        write_chains(image_sizes=[(1, 1), (1, 1), (4, 1)], max_new_tokens=900)
    engine = RolloutEngine(make_policy(), LAYOUT, RolloutConfig(grammar="chain", max_new_tokens=200))
    with pytest.raises(UserError, match="image_sizes"):
        engine.generate([LAYOUT.bos, 30, LAYOUT.end_of_turn])
    with pytest.raises(UserError, match="prompt"):
        engine.generate([])
    with pytest.raises(UserError, match="prompt"):
        engine.generate([PROMPTS[0], []])
    with pytest.raises(UserError, match="ChainProcessor"):
        RolloutEngine(make_policy(), dataclasses.replace(LAYOUT, chain_form=None),
                      RolloutConfig(grammar="chain"))
    with pytest.raises(UserError, match="belong together"):
        RolloutEngine(make_policy(vocab_size=40), LAYOUT, RolloutConfig())
