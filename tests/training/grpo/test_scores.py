"""What a reward may return, what is said of what it may not, and of what teaches nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import Any

import numpy
import pytest
import torch

from realsr_r1.chain import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.training.agreement import Agreement
from realsr_r1.training.grpo.scores import IDLE_STEPS, IdleWatch, checked_scores, guarded, try_own_rewards

TEXTS = ["one", "two", "three"]


def raising(error: BaseException) -> Any:
    def bad(completions: list[str], **columns: Any) -> list[float]:
        raise error
    return bad


def returning(scores: Any) -> Any:
    def bad(completions: list[str], **columns: Any) -> Any:
        return scores
    return bad


@pytest.mark.parametrize("scores", [
    [1, 0.5, None], (True, 0, 1.0), torch.tensor([1.0, 0.5, 0.0]), numpy.array([1, 2, 3]),
    [torch.tensor(1.0), numpy.float32(0.5), None], [float("nan"), 0.0, -1e30]], ids=str)
def test_numbers_of_any_kind_are_scores(scores):
    assert len(checked_scores("mine", scores, TEXTS)) == 3


@pytest.mark.parametrize(("scores", "words"), [
    ([1.0, 2.0], "returned 2 scores for 3"), ([1.0] * 4, "4 scores for 3"), ([], "0 scores"),
    (None, "returned nothing"), (0.5, "a float"), ({"a": 1}, "a dict"), ("abc", "a str"),
    (range(3), "a range"), (["1", 1, 1], r"a str for completion 0 .*\('one'\)"),
    ([1.0, [2.0], 3.0], "a list for completion 1"), ([1.0, 2.0, torch.ones(2)], "a list for completion 2"),
    ([1.0, float("inf"), 0.0], r"inf for completion 1 .*\('two'\)"), ([0, -float("inf"), 0], "-inf"),
    ([10 ** 400, 0, 0], "completion 0"), ([0, 0, 1e39], "1e\\+39 for completion 2"), ([1j, 0, 0], "complex")],
    ids=str)
def test_anything_else_is_refused_by_the_rewards_name(scores, words):
    with pytest.raises(UserError, match=f"reward mine .*{words}"):
        checked_scores("mine", scores, TEXTS)


@pytest.mark.parametrize(("reward", "words"), [
    (raising(ValueError("oh")), "the reward bad raised ValueError: oh .*test_scores.py, line"),
    (raising(SystemExit(3)), ""),
    (returning([float("inf")] * 3), "must be finite"), (functools.partial(returning(None)), "returned nothing")])
def test_a_fault_waits_until_the_ranks_agree_on_it(reward, words):
    agreement = Agreement()
    call = guarded(reward, agreement, contextlib.nullcontext)
    assert call(completions=TEXTS) == [None] * 3 and call.__name__ == "bad"
    with pytest.raises(UserError, match=words):
        agreement.settle()


def test_so_does_one_of_a_coroutine():
    async def later(completions: list[str], **columns: Any) -> list[float]:
        return [1.0]

    agreement = Agreement()
    assert asyncio.run(guarded(later, agreement, contextlib.nullcontext)(completions=TEXTS)) == [None] * 3
    with pytest.raises(UserError, match="reward later returned 1 scores"):
        agreement.settle()


@pytest.mark.parametrize(("scores", "words"), [
    ([float("nan")] * 4, "mine gave no score"), ([1.0] * 4, "mine gave 1 always"),
    ([0.0, 0.0, 1.0, 1.0], "mine gave 0 to 1, equal within groups")])
def test_after_some_steps_without_an_advantage_there_is_one_warning(scores, words):
    watch, rewards = IdleWatch(["mine"]), torch.tensor(scores)[:, None]
    said = [watch.warning(rewards, torch.zeros(4)) for _ in range(2 * IDLE_STEPS)]
    assert [text is not None for text in said].index(True) == IDLE_STEPS - 1
    assert sum(text is not None for text in said) == 1 and words in said[IDLE_STEPS - 1]


def test_a_step_that_teaches_starts_the_count_anew():
    watch, rewards = IdleWatch(["mine"]), torch.ones(4, 1)
    steps = [torch.zeros(4)] * (IDLE_STEPS - 1) + [torch.ones(4)] + [torch.zeros(4)] * (IDLE_STEPS - 1)
    assert not any(watch.warning(rewards, advantages) for advantages in steps)


def test_the_trainer_says_it(make_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        make_trainer(first=returning([1.0] * 6), max_steps=IDLE_STEPS, grammar="image",
                     max_completion_length=12)[0].train()
    assert caplog.text.count("bad gave 1 always") == 1


def test_an_infinite_reward_ends_the_run(make_trainer):
    with pytest.raises(UserError, match="reward bad returned inf for completion 2"):
        make_trainer(first=returning([0, 1, float("inf"), 0, 0, 0]), max_steps=1, grammar="image",
                     max_completion_length=12)[0].train()


def unsure(completions, images, tag, trainer_state, **columns):
    assert trainer_state.global_step == 0 and tag == [["cup"]] and images[0][-1].size
    return [None]


def longer_than_its_prompt(prompts, completion_ids, **columns):
    """Prompts are ids, as in the run."""
    return [float(len(own) > len(prompt + own)) for prompt, own in zip(prompts, completion_ids, strict=True)]


async def later(completions, **columns):
    return [0.5 for _ in completions]


def broken(completions, images, **columns):
    return [pictures[-1].no_such_thing for pictures in images]


@pytest.mark.parametrize(("reward", "words"), [
    (unsure, None), (later, None), (longer_than_its_prompt, None), (returning(0.5), "reward mine:reward returned a float"),
    (returning([float("inf")]), "returned inf for completion 0"),
    (broken, r"mine:reward, given one completion, raised AttributeError: .*test_scores.py, line \d+")])
def test_ones_own_reward_judges_one_completion_before_a_run_starts(reward, words):
    with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
        try_own_rewards(["format", "mine:reward"], [broken, reward], ChainSpec.published(), {"tag": ["cup"]})
