"""`--stop_if`: which conditions there are, and when one is met."""

from __future__ import annotations

import math

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.training.grpo.guards import (
    Condition,
    first_met,
    never_logged,
    require_logged,
    streak,
)

LOGGED = {"rewards/format_reward/mean", "rewards/vowels/mean", "reward", "loss", "repeated_rows",
          "maniqa-pipal"}


def log(name: str, *values: float | None) -> list[dict]:
    return [{"step": step, name: value} for step, value in enumerate(values, 1)]


@pytest.mark.parametrize("text, expected", [
    ("format<0.5 for 20", Condition("format", "<", 0.5, 20)), ("loss>1e3", Condition("loss", ">", 1000.0)),
    ("  repeated_rows  >  .9  for  3 ", Condition("repeated_rows", ">", 0.9, 3)),
    ("correlation/a-b<-0.5", Condition("correlation/a-b", "<", -0.5))])
def test_a_condition_is_read_and_written(text, expected):
    assert Condition.parse(text) == expected
    assert Condition.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "format", "format=1", "format<=0.5", "format<", "<0.5", "format<half",
                                  "format<0.5 for", "format<0.5 for 0", "format<0.5 for two",
                                  "format<0.5 for 2 steps", "format<nan", "loss>inf", "0.5<format<0.9"])
def test_what_is_no_condition_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="is no condition") as refused:
        Condition.parse(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name, key", [
    ("format", "rewards/format_reward/mean"), ("vowels", "rewards/vowels/mean"), ("total", "reward"),
    ("reward", "reward"), ("rewards/format_reward/mean", "rewards/format_reward/mean"),
    ("maniqa-pipal", "maniqa-pipal"), ("style", None), ("eval_format", None)])
def test_a_short_name_means_a_rewards_mean(name, key):
    assert Condition(name, "<", 0.0).key(LOGGED) == key
    evaluated = {f"eval_{logged}" for logged in LOGGED}
    assert Condition(f"eval_{name}", "<", 0.0).key(evaluated) == (f"eval_{key}" if key else None)


@pytest.mark.parametrize("values, expected", [
    ([0.9, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2]), ([0.1, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2]),
    ([0.1, 0.2, 0.3, 0.9], []), ([0.1, 0.9, 0.3, 0.2], [0.3, 0.2]), ([], []),
    ([0.4, None, 0.3, 0.2], [0.4, 0.3, 0.2]), ([0.4, math.nan, 0.3, 0.2], [0.3, 0.2]),
    ([0.5, 0.5, 0.5], [])])
def test_the_latest_values_in_a_row_count(values, expected):
    assert streak(Condition("loss", "<", 0.5, 3), log("loss", *values)) == expected


def test_an_evaluations_numbers_are_counted_by_evaluations():
    records = [{"loss": 1.0}, {"eval_reward": 0.2}, {"loss": 1.0}, {"loss": 1.0}, {"eval_reward": 0.1}]
    assert first_met([Condition("eval_total", "<", 0.3, 2)], records) == (
        Condition("eval_total", "<", 0.3, 2), [0.2, 0.1])
    assert first_met([Condition("eval_total", "<", 0.3, 3)], records) is None


def test_the_first_condition_that_is_met_is_named():
    conditions = [Condition("loss", ">", 5.0), Condition("loss", "<", 0.5), Condition("loss", "<", 0.9)]
    assert first_met(conditions, log("loss", 0.4)) == (conditions[1], [0.4])
    assert first_met(conditions, log("loss", 0.95)) is None and first_met([], log("loss", 1.0)) is None


@pytest.mark.parametrize("name, words", [
    ("fromat", "did you mean format"), ("repeated_row", "did you mean repeated_rows"),
    ("eval_format", "does not evaluate")])
def test_an_unknown_name_is_refused_with_the_name_it_may_stand_for(name, words):
    with pytest.raises(UserError, match=words) as refused:
        require_logged([Condition("format", "<", 0.5), Condition(name, "<", 0.5)], LOGGED)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_missing_where_it_should_be_logged_is_found():
    step, evaluation = {"loss": 1.0, "a": 1.0}, {"eval_loss": 1.0}
    known, unknown, later = Condition("a", "<", 0), Condition("b", "<", 0), Condition("eval_b", "<", 0)
    assert never_logged([known, later], [step]) is None
    assert never_logged([known, unknown], [step]) == unknown
    assert never_logged([known, later], [step, evaluation]) == later
    assert never_logged([known], [step, {"loss": 1.0}]) is None  # it was logged before
