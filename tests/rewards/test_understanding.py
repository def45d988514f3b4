"""The understanding reward: the share of tags that the rough description names as whole words."""

from __future__ import annotations

import pytest

from realsr_r1.rewards import understanding_reward


def score(description: str, tags):
    return understanding_reward([f"<rough_understand>{description}</rough_understand>"], tag=[tags])[0]


def test_three_tags_of_four_score_0_75(chain):
    tags = ["cat", "table", "window", "dog"]
    assert understanding_reward([chain(rough_understand="A cat on a table near a window.")],
                                tag=[tags]) == [0.75]


@pytest.mark.parametrize("tags", [["cat, table, window, dog"], "cat, table,window ,dog",
                                  ["cat, table", "window", "dog"],
                                  [" Cat", "TABLE", "window", "dog", "cat", "Dog ", "", ", ,"]])
def test_tags_come_as_strings_or_comma_separated_and_count_once(tags):
    assert score("A cat on a table near a window.", tags) == 0.75


@pytest.mark.parametrize("description, tag", [
    ("education", "cat"), ("a concatenation", "cat"), ("a caterpillar", "cat"), ("cat_1", "cat"),
    ("catss", "cat"),
    ("a sea-side seat", "eat"), ("tables", "tab"), ("fire trucks", "fire hydrant"),
    ("truck, fire", "fire truck"),
    ("", "cat"), ("an aXb", "a.b")])
def test_a_part_of_a_word_does_not_count(description, tag):
    assert score(description, [tag]) == 0.0


@pytest.mark.parametrize("description, tag", [
    ("Two cats.", "cat"), ("boxes", "box"), ("cities", "city"), ("toys", "toy"), ("churches", "church"),
    ("glasses", "glass"), ("leaves", "leaf"), ("knives", "knife"), ("roofs", "roof"), ("potatoes", "potato"),
    ("women", "woman"), ("men", "man"), ("children", "child"), ("people", "person")])
def test_plurals_count(description, tag):
    assert score(description, [tag]) == 1.0


@pytest.mark.parametrize("description", ["A CAT", "cat", "(cat)", '"cat"', "the cat's eyes", "dog,cat;bird",
                                         "line\ncat\n"])
def test_a_whole_word_counts_whatever_stands_around_it(description):
    assert score(description, ["cat"]) == 1.0


@pytest.mark.parametrize("description, tag", [
    ("a fire truck", "fire truck"), ("red Fire\n  trucks", "fire  truck"), ("a t-shirt", "t-shirt"),
    ("the café", "café"), ("c++ code", "c++"), ("a (small) dog", "(small) dog")])
def test_tags_of_several_words_and_with_signs_count(description, tag):
    assert score(description, [tag]) == 1.0


def test_only_the_rough_description_counts(chain):
    assert understanding_reward([chain(rough_understand="A thing.", final_understand="A cat.")],
                                tag=[["cat"]]) == [0.0]


@pytest.mark.parametrize("tags", [None, [], "", " , ", [""], [None]])
def test_a_record_without_tags_gets_none(tags):
    assert score("A cat.", tags) is None
    assert understanding_reward([""], tag=[tags]) == [None]


def test_without_the_column_every_record_gets_none(chain):
    assert understanding_reward([chain(), ""]) == [None, None]


def test_no_section_scores_zero():
    answers = ["A cat.", "<rough_understand>A cat.", "<final_understand>A cat.</final_understand>"]
    assert understanding_reward(answers, tag=[["cat"]] * 3) == [0.0] * 3


def test_odd_completions_never_raise(odd_completions):
    scores = understanding_reward(odd_completions, tag=[["cat", "a fire truck"]] * len(odd_completions))
    assert all(0.0 <= value <= 1.0 for value in scores)
