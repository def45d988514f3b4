"""What a rollout is watched by, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from realsr_r1.training.grpo.statistics import (
    repeated_rows,
    reward_statistics,
    section_lengths,
    section_sums,
)

NAN = math.nan
ONES = torch.ones(2)


def test_spread_is_the_mean_over_groups_of_the_standard_deviation():
    # std of (0, 2) is sqrt(2), of (1, 1) 0; the sums are (1, 3) and (2, 4): sqrt(2) twice.
    rewards = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    found = reward_statistics(rewards, ONES, 2, ["a", "b"])
    assert found["spread/a"] == pytest.approx(math.sqrt(2) / 2)
    assert found["spread/b"] == pytest.approx(math.sqrt(2) / 2)
    assert found["spread/total"] == pytest.approx(math.sqrt(2))
    assert (found["no_spread/a"], found["no_spread/b"]) == (0.5, 0.5)
    assert "no_spread/total" not in found  # TRL logs frac_reward_zero_std


def test_weights_count_in_the_total():
    found = reward_statistics(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1.0, 2.0]), 2, ["a", "b"])
    assert found["spread/total"] == 0.0


def test_equal_scores_have_no_spread_although_their_mean_is_rounded():
    tenths = torch.full((3, 2), 0.1)
    found = reward_statistics(tenths, ONES, 3, ["a", "b"])
    assert found == {"spread/a": 0.0, "spread/b": 0.0, "spread/total": 0.0, "no_spread/a": 1.0,
                     "no_spread/b": 1.0, "correlation/a-b": 0.0}


def test_scores_that_are_missing_count_nowhere():
    # a: (0, 2) scored; the second group has one score only. b: (1, 3) in the second group.
    rewards = torch.tensor([[0.0, NAN], [2.0, NAN], [5.0, 1.0], [NAN, 3.0]])
    found = reward_statistics(rewards, ONES, 2, ["a", "b"])
    assert found["spread/a"] == found["spread/b"] == pytest.approx(math.sqrt(2))
    assert (found["no_spread/a"], found["no_spread/b"]) == (0.0, 0.0)
    nothing = reward_statistics(torch.full((4, 2), NAN), ONES, 2, ["a", "b"])
    assert math.isnan(nothing["spread/a"]) and math.isnan(nothing["no_spread/b"])


@pytest.mark.parametrize("a, b, expected", [
    ([0, 1, 2, 9, 9, 9], [0, 1, 2, 3, 3, 3], 1.0),
    ([0, 1, 2, 9, 9, 9], [2, 1, 0, 3, 3, 3], -1.0),
    # above the means: (-1, 0, 1, -1, 0, 1) and (1, 0, -1, -1, 0, 1): 0 in all, although groups differ
    ([0, 1, 2, 10, 11, 12], [2, 1, 0, 10, 11, 12], 0.0),
    # (-1, 0, 1) and (-1, 1, 0): 1 / (sqrt(2) sqrt(2))
    ([0, 1, 2, 0, 0, 0], [0, 2, 1, 0, 0, 0], 0.5)])
def test_correlation_is_that_within_groups(a, b, expected):
    rewards = torch.tensor([a, b], dtype=torch.float32).T
    assert reward_statistics(rewards, ONES, 3, ["a", "b"])["correlation/a-b"] == pytest.approx(expected)


def test_every_pair_of_rewards_has_a_correlation_and_one_reward_none():
    names = ["a", "b", "c"]
    found = reward_statistics(torch.rand(4, 3), torch.ones(3), 2, names)
    assert {key for key in found if key.startswith("correlation")} == {
        "correlation/a-b", "correlation/a-c", "correlation/b-c"}
    assert not [key for key in reward_statistics(torch.rand(4, 1), torch.ones(1), 2, ["a"])
                if key.startswith("correlation")]


def test_tokens_are_counted_and_averaged_by_section():
    numbers = torch.tensor([[0, 0, 1, 2, 2], [0, 2, 2, 2, 2]])  # 2: in none of the two sections
    assert section_lengths(numbers, 2)[0].tolist() == [2.0, 1.0]
    assert section_lengths(numbers, 2)[1, 0] == 1.0 and section_lengths(numbers, 2)[1, 1].isnan()
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0, 9.0], [8.0, 9.0, 9.0, 9.0, 9.0]])
    weights = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # the second token was forced
    assert section_sums(values, weights, numbers, 2).tolist() == [[9.0, 4.0], [2.0, 1.0]]


@pytest.mark.parametrize("codes, expected", [
    ([[7, 7], [7, 7], [7, 7]], 1.0), ([[1, 2], [2, 1], [3, 3]], 0.0),
    ([[1, 2], [3, 4], [1, 2], [3, 4], [5, 6]], 0.5)])  # two of four rows that could be repetitions
def test_rows_that_were_there_before_are_repeated(codes, expected):
    assert repeated_rows(codes) == expected


def test_an_image_of_one_row_has_no_rows_to_repeat():
    assert math.isnan(repeated_rows([[1, 1]]))
