"""At each image a caller chooses which completions go on; those are what they are without a choice."""

from __future__ import annotations

import dataclasses

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
CHAIN = RolloutConfig(num_generations=4, max_new_tokens=135, image_top_k_max=200, grammar="chain",
                      max_text_tokens=6, seed=11)
TEXTS = [[[26, 27], [28], [29, 30, 31], [32]]] * len(PROMPTS)
ROUGH, MIDDLE, FINAL = range(3)
SECTIONS = (2, 4, 6)  # of the images


class Narrowing:
    """Keeps the candidates that begin with the largest ids, so many after each image."""

    def __init__(self, *counts: int):
        self.counts, self.asked = counts, []

    def __call__(self, prompt, image, written):
        best = sorted(written, key=written.get)[-self.counts[image]:]
        self.asked.append((prompt, image, dict(written), sorted(best)))
        return best


def write(config=CHAIN, choose=None, given=None, prompts=PROMPTS):
    return RolloutEngine(make_policy(4), LAYOUT, config).generate(prompts, given=given, choose=choose)


@pytest.fixture(scope="module", params=[(0.8, 1, None), (1.0, 1, TEXTS), (0.8, 4, None), (1.0, 4, TEXTS)],
                ids=["own texts, guidance", "given texts", "own texts, jacobi", "given texts, jacobi"])
def case(request):
    """Settings, given texts, and what is written without a choice."""
    guidance, jacobi, given = request.param
    config = dataclasses.replace(CHAIN, guidance_scale=guidance, jacobi=jacobi)
    return config, given, write(config, given=given)


def test_the_completions_that_stay_are_those_without_a_choice_and_the_others_end_at_an_image(case):
    config, given, whole = case
    found = write(config, Narrowing(2, 1, 1), given)
    assert [sum(found.kept[first:first + 4]) for first in (0, 4, 8)] == [1, 1, 1]
    for kept, ids, expected in zip(found.kept, found.completion_ids, whole.completion_ids, strict=True):
        assert (ids == expected) if kept else (ids == expected[:len(ids)])
    images = [len(LAYOUT.find_spans(ids)) for ids, kept in zip(found.completion_ids, found.kept, strict=True)
              if not kept]
    # One that is ahead of its neighbours may be in its next text, hardly ever in another image.
    assert sorted(images) == [ROUGH + 1] * 6 + [MIDDLE + 1] * 3


def test_each_image_of_each_prompt_is_asked_about_once_with_what_was_written(case):
    config, given, whole = case
    choose = Narrowing(3, 2, 1)
    write(config, choose, given)
    assert sorted((prompt, image) for prompt, image, *_ in choose.asked) == [
        (prompt, image) for prompt in range(3) for image in range(3)]
    left = {prompt: [0, 1, 2, 3] for prompt in range(3)}
    for prompt, image, written, best in choose.asked:
        assert sorted(written) == left[prompt]
        for number, ids in written.items():
            assert ids == LAYOUT.chain_bodies(whole.completion_ids[4 * prompt + number])[SECTIONS[image]]
        left[prompt] = best


def test_keeping_all_changes_nothing(case):
    config, given, whole = case
    assert write(config, lambda prompt, image, written: written, given) == whole
    assert all(whole.kept)


@pytest.mark.parametrize("counts", [(4, 2, 1), (8, 7, 6)])
def test_losers_leave_at_once_and_row_passes_are_the_rows_of_every_forward_pass(monkeypatch, counts):
    """Prompts of one length with given texts close their images together, so losers leave at once."""
    from realsr_r1.models.lumina.decoder import LuminaDecoder

    rows = []
    def counting(original):
        def count(self, tokens, *more):
            rows.append(len(tokens))
            return original(self, tokens, *more)
        return count

    for name in ("step", "feed"):
        monkeypatch.setattr(LuminaDecoder, name, counting(getattr(LuminaDecoder, name)))
    config = dataclasses.replace(CHAIN, guidance_scale=1.0, num_generations=counts[0],
                                 image_sizes=[(1, 1), (1, 1), (2, 2)])
    whole = write(config, given=TEXTS, prompts=PROMPTS[:1] * 3)
    passes = whole.forwards[0] - 1  # without the prompt's
    assert rows == [3 * counts[0]] * passes and whole.row_passes == sum(rows)
    rows.clear()
    found = write(config, Narrowing(*counts[1:], counts[-1]), TEXTS, PROMPTS[:1] * 3)
    rough, middle, last = sorted(set(found.forwards))
    steps = (rough - 1, middle - rough, last - middle)
    assert rows == [3 * count for count, times in zip(counts, steps, strict=True) for _ in range(times)]
    assert found.row_passes == sum(rows) and last == whole.forwards[0]


def test_a_row_that_is_ahead_of_its_neighbours_goes_on():
    """With texts of their own rows close images at different steps."""
    whole, found = write(), write(choose=Narrowing(2, 1, 1))
    assert len({len(ids) for ids in whole.completion_ids}) > 3
    assert found.row_passes < 0.75 * whole.row_passes


def test_the_last_image_can_be_chosen_too_even_when_its_writer_has_ended():
    found = write(choose=Narrowing(4, 4, 1))
    assert [sum(found.kept[first:first + 4]) for first in (0, 4, 8)] == [1, 1, 1]


def test_choosing_needs_the_chain_and_somebody_must_stay():
    with pytest.raises(UserError, match='choosing among completions needs the grammar "chain"'):
        write(dataclasses.replace(CHAIN, grammar="image"), Narrowing(2, 1, 1))
    for chosen in ([], [7]):
        with pytest.raises(ValueError, match="of the completions"):
            write(choose=lambda prompt, image, written, chosen=chosen: chosen)
