"""The understanding reward: the share of tags that the rough description names as whole words, and
options: precision, synonyms.
"""

from __future__ import annotations

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.rewards import understanding_reward
from realsr_r1.rewards.tags import Tags, read_synonyms


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


@pytest.mark.parametrize("tags", [None, [], "", " , ", [""], [None], 5, 0.5, True, [1]])
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


def judged(description: str, tags, vocabulary, synonyms=None):
    return understanding_reward([f"<rough_understand>{description}</rough_understand>"], tag=[tags],
                                names=Tags(synonyms, vocabulary), precision=True)[0]


def test_with_precision_a_wrong_tag_costs_and_a_right_one_earns():
    vocabulary = ["cat", "table", "window", "dog", "car"]
    tags = vocabulary[:4]
    found = [judged(text, tags, vocabulary) for text in (
        "A cat on a table near a window.", "A cat on a table near a window, and a car.", "A car.", "")]
    assert found == pytest.approx([6 / 7, 6 / 8, 0.0, 0.0])  # 2 * right / (tags + right + wrong)
    assert judged("Cats, tables, windows and dogs.", tags, vocabulary) == 1.0
    # What is no tag of the dataset is no claim about the photo's tags.
    assert judged("A cute cat sits on a wooden table near a window.", tags, vocabulary) == found[0]


def test_naming_ten_thousand_tags_does_not_win_with_precision():
    letters = "bcdfghjklm"
    vocabulary = ["".join(letters[int(digit)] + "a" for digit in f"{number:04}") for number in range(10_000)]
    tags = vocabulary[::1000]
    answers = [f"<rough_understand>{', '.join(named)}</rough_understand>"
               for named in (vocabulary, tags[3:4], tags[:5], tags)]
    assert understanding_reward(answers[:1], tag=[tags]) == [1.0]  # as published
    everything, one, half, right = understanding_reward(answers, tag=[tags] * 4, names=Tags({}, vocabulary),
                                                        precision=True)
    assert everything < 0.01 < one < half < right == 1.0


def test_words_inside_a_longer_tag_are_no_claims_of_their_own():
    vocabulary = ["fire truck", "fire", "truck", "food", "cat food", "cat"]
    assert judged("A red fire truck.", ["fire truck"], vocabulary) == 1.0
    assert judged("Cat food near fire trucks.", ["fire truck"], vocabulary) == pytest.approx(2 / 3)
    assert judged("A fire truck, and a fire.", ["fire truck"], vocabulary) == pytest.approx(2 / 3)
    signs = ["cat", "c++", "t-shirt", "shirt"]
    assert judged("A c++11 t-shirt; two cats.", ["cat"], signs) == pytest.approx(2 / 3)


def test_synonyms_are_one_thing_in_tags_description_and_vocabulary():
    synonyms = {"car": ["automobile", "motor car"], "cat": ["kitten"]}
    assert understanding_reward(
        ["<rough_understand>Two kittens in an automobile.</rough_understand>"],
        tag=[["car", "cat", "dog", "kitten"]], names=Tags(synonyms)) == pytest.approx([2 / 3])
    vocabulary = ["car", "automobile", "cat", "kitten", "dog"]
    assert judged("A motor car.", ["automobile"], vocabulary, synonyms) == 1.0
    assert judged("A kitten.", ["cat"], vocabulary, synonyms) == 1.0
    assert judged("A kitten.", ["cat"], vocabulary) == 0.0


def test_synonyms_come_from_a_file_and_a_bad_one_is_named(tmp_path):
    path = tmp_path / "synonyms.yaml"
    path.write_text("Car: [automobile, Motor  car]\n")
    assert Tags(read_synonyms(str(path))).names("a motor car", "car")
    for text, message in (("car: automobile", "TAG: .WORD"), ("- car", "TAG: .WORD"),
                          ("no: [yes]", "in quotes"), ("car: ['']", "is empty"),
                          ("car: [vehicle]\nbus: [vehicle]", "'vehicle' stands for two")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_synonyms(str(path))
    with pytest.raises(UserError, match="no such file: nowhere.yaml .given by --tag_synonyms"):
        read_synonyms("nowhere.yaml")
