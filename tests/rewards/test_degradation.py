"""The degradation reward: the share of the five items that is right, item i against item i."""

from __future__ import annotations

import pytest

from realsr_r1.data.degradation import degrade
from realsr_r1.rewards import degradation_reward
from realsr_r1.rewards.degradation import LEVELS

TRUTH = ["light blur", "downsample", "medium noise", "light compression", "upsample"]
ANSWER = "medium blur, downsample, heavy noise, light compression, upsample"


def score(answer: str, truth=TRUTH):
    return degradation_reward([f"<degradation>{answer}</degradation>"], degradation=[truth])[0]


def test_the_papers_example_scores_0_6(chain):
    assert degradation_reward([chain(degradation=ANSWER)], degradation=[TRUTH]) == [0.6]


@pytest.mark.parametrize("wrong", range(6))
def test_each_wrong_item_costs_a_fifth(wrong):
    answer = ["no idea"] * wrong + TRUTH[wrong:]
    assert score(", ".join(answer)) == (5 - wrong) / 5


def test_case_and_outer_space_do_not_count():
    assert score("  LIGHT blur ,Downsample,\n medium noise,light compression , upsample\n") == 1.0


def test_items_count_in_their_own_place_only():
    assert score(", ".join(reversed(TRUTH))) == 0.2  # the middle one


def test_missing_items_are_wrong_and_a_sixth_spoils_all():
    assert score(", ".join(TRUTH[:3])) == 0.6
    assert score("") == 0.0
    assert score(", ".join([*TRUTH, "upsample"])) == 0.0


def test_truth_may_be_one_comma_separated_string():
    assert score(ANSWER, truth="Light blur, downsample,medium noise, light compression, upsample ") == 0.6


@pytest.mark.parametrize("truth", [None, [], "", TRUTH[:4], [*TRUTH[:4], ""], [*TRUTH[:4], None],
                                   ["", "", "", "", ""], 5, 0.5, True, {"blur": 1}, [1, 2, 3, 4, 5]])
def test_a_record_without_the_truth_gets_none(truth):
    assert score(ANSWER, truth=truth) is None


def test_without_the_column_every_record_gets_none(chain):
    assert degradation_reward([chain(), ""]) == [None, None]


def test_a_broken_chain_still_scores_by_its_section_and_no_section_scores_zero():
    answers = [f"<degradation>{ANSWER}</degradation> and no more", ANSWER, f"<degradation>{ANSWER}"]
    assert degradation_reward(answers, degradation=[TRUTH] * 3) == [0.6, 0.0, 0.0]


def test_odd_completions_never_raise(odd_completions):
    scores = degradation_reward(odd_completions, degradation=[TRUTH] * len(odd_completions))
    assert all(0.0 <= value <= 1.0 for value in scores)


def test_a_neighbouring_level_earns_the_credit_that_is_given():
    answer = "medium blur, keep, heavy noise, heavy compression, upsample"  # heavy is two from light
    credited = [degradation_reward([f"<degradation>{answer}</degradation>"], degradation=[TRUTH],
                                   neighbour_credit=credit)[0] for credit in (0.0, 0.25, 0.5)]
    assert credited == pytest.approx([0.2, 0.3, 0.4])
    for wrong in ("medium noise", "medium", "", "blur", "medium blur blur"):  # for a light blur
        items = ", ".join([wrong, *TRUTH[1:]])
        assert degradation_reward([f"<degradation>{items}</degradation>"], degradation=[TRUTH],
                                  neighbour_credit=0.5) == [0.8]


def test_the_levels_are_those_that_datasets_are_labelled_with():
    assert LEVELS == degrade.LEVELS
