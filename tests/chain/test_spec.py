"""A chain as data: what a YAML file says is what the code follows, and what can't work is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from realsr_r1.chain import SECTIONS, ChainSpec, parse_chain
from realsr_r1.chain.spec import IMAGE
from realsr_r1.chain.text import markup_in, render_chain
from realsr_r1.core.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "chain"
NAMES = ["vlcot", "two_stage", "four_stage", "pure_one_step"]
TEXT = {"name": "words", "kind": "text", "about": "description"}
PICTURE = {"name": "picture", "kind": "image", "share": 1.0}


def chain(*sections: dict, problem: str = "Restore it.") -> ChainSpec:
    return ChainSpec.from_dict({"sections": list(sections), "problem": problem}, "mine.yaml")


def bodies(spec: ChainSpec) -> dict[str, str]:
    return {section.name: f"a text of {section.name}" for section in spec.sections if not section.is_image}


def test_the_published_chain_is_the_default_and_has_its_seven_sections():
    spec = ChainSpec.published()
    assert spec.names() == SECTIONS == ("degradation", "rough_understand", "rough_image", "middle_understand",
                                        "middle_image",
                                        "final_understand", "final_image")
    assert spec == ChainSpec.from_yaml(CONFIGS / "vlcot.yaml")
    assert spec.levels == spec.labels == ("rough", "middle", "final")


def test_images_have_a_quarter_a_half_and_the_whole_of_each_side():
    spec = ChainSpec.published()
    assert spec.image_sizes(16, 16) == ((4, 4), (8, 8), (16, 16))
    assert spec.image_sizes(3, 3) == ((1, 1), (2, 2), (3, 3))
    assert spec.image_sizes(1, 4) == ((1, 1), (1, 2), (1, 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_survives_being_written_as_data_and_as_text(name):
    spec = ChainSpec.from_yaml(CONFIGS / f"{name}.yaml")
    assert ChainSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict())), "again") == spec
    found = parse_chain(render_chain(bodies(spec), spec), spec)
    assert found.is_well_formed and tuple(found.sections) == spec.names()
    assert {name: found.sections[name] for name in bodies(spec)} == bodies(spec)
    assert [found.sections[section.name] for section in spec.images] == [IMAGE] * len(spec.images)


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_that_lacks_or_repeats_an_image_is_not_well_formed(name):
    spec = ChainSpec.from_yaml(CONFIGS / f"{name}.yaml")
    whole = render_chain(bodies(spec), spec)
    for broken in (whole.replace(IMAGE, "", 1), whole.replace(IMAGE, IMAGE * 2, 1), whole + IMAGE,
                   "x" + whole * 2, ""):
        assert not parse_chain(broken, spec).is_well_formed, broken


def test_one_chain_is_not_another():
    specs = [ChainSpec.from_yaml(CONFIGS / f"{name}.yaml") for name in NAMES]
    for spec in specs:
        text = render_chain(bodies(spec), spec)
        assert [parse_chain(text, other).is_well_formed for other in specs] == [other is spec
                                                                                for other in specs]


@pytest.mark.parametrize("text, sections", [
    (f"A cat. {IMAGE}", {"understanding": "A cat.", "final_image": IMAGE}),
    (IMAGE, {"understanding": "", "final_image": IMAGE}),
    ("A cat.", {"understanding": "A cat."}), (f"A cat. {IMAGE} More.",
                                              {"understanding": "A cat.", "final_image": IMAGE})])
def test_sections_without_tags_are_found_by_their_place(text, sections):
    found = parse_chain(text, ChainSpec.from_yaml(CONFIGS / "pure_one_step.yaml"))
    assert found.sections == sections
    assert found.is_well_formed == (text.endswith(IMAGE))


def test_tagged_and_untagged_sections_go_together():
    spec = chain({"name": "labels", "kind": "text", "about": "degradation"}, {**TEXT, "tagged": False},
                 {"name": "small", "kind": "image", "share": 0.5, "tagged": False}, PICTURE)
    text = f"<labels>a, b</labels> words {IMAGE} <picture>{IMAGE}</picture>"
    assert parse_chain(text, spec).is_well_formed
    assert parse_chain(text, spec).sections == {"labels": "a, b", "words": "words", "small": IMAGE,
                                                "picture": IMAGE}
    assert markup_in("x </labels>", spec) == "</labels>" and markup_in("<words>", spec) is None


def test_what_a_file_leaves_out_is_the_published_chains():
    spec = ChainSpec.from_dict({"problem": "Restore it."}, "mine.yaml")
    assert spec.question == "Restore it." and spec.sections == ChainSpec.published().sections
    assert ChainSpec.from_dict({"target_px": 48}, "mine.yaml") == ChainSpec.published()


@pytest.mark.parametrize("values, said", [
    ({"section": [PICTURE], "problem": "Restore it."}, "unknown key 'section'"),
    ({"sections": [PICTURE]}, "sections and no problem"), ({"problem": 5}, "problem is 5")])
def test_a_file_that_says_half_of_a_chain_is_refused(values, said):
    with pytest.raises(UserError, match="mine.yaml.*" + said):
        ChainSpec.from_dict(values, "mine.yaml")


@pytest.mark.parametrize("sections, said", [
    ([], "at least 1 of them"), ([TEXT], "no section is an image"),
    ([{**TEXT, "name": "A b"}], "section 1 needs a name"),
    ([PICTURE, PICTURE], "two sections are called 'picture'"), ([{**PICTURE, "share": 0.5}], "it must be 1"),
    ([{**PICTURE, "share": 0}], "share is 0"), ([{**PICTURE, "share": True}], "share is True"),
    ([{**PICTURE, "level": "rough"}], "'level'"), ([{**TEXT, "share": 1}, PICTURE], "'share'"),
    ([{**TEXT, "about": "colour"}, PICTURE], "about is 'colour'"),
    ([{**TEXT, "kind": "sound"}], "kind is 'sound'"),
    ([{**TEXT, "tagged": "no"}, PICTURE], "tagged is 'no'"),
    ([{**TEXT, "words": 1}, PICTURE], "unknown key 'words'"),
    ([{**TEXT, "wordings": ["{colour}"]}, PICTURE], "{colour}"),
    ([{**TEXT, "wordings": ["{Text"]}, PICTURE], "filled in"),
    ([{**TEXT, "wordings": ["{tags}"]}, PICTURE], "without tags"),
    ([{**TEXT, "tags_only": ["A photo."]}, PICTURE], "must have"),
    ([{**TEXT, "wordings": ["{Text:d}"]}, PICTURE], "may have"),
    ([{**TEXT, "unknown": ""}, PICTURE], "not empty"),
    ([{**PICTURE, "name": "image"}], "needs another name"),
    ([{**TEXT, "tagged": False}, {**TEXT, "name": "more", "tagged": False}, PICTURE], "side by side"),
    ([{**PICTURE, "name": "lq_image"}], "two images would be called 'lq'"),
    (["picture"], "section 1 needs a name"),
    ({"picture": 1}, "it must be a list")])
def test_a_chain_that_cannot_work_is_refused_by_the_file_and_the_section(sections, said):
    with pytest.raises(UserError, match="mine.yaml") as error:
        ChainSpec.from_dict({"sections": sections, "problem": "Restore it."}, "mine.yaml")
    assert said in str(error.value)


def test_a_question_with_two_images_is_refused():
    with pytest.raises(UserError, match="at most once"):
        chain(PICTURE, problem=f"{IMAGE} and {IMAGE}")


def test_a_degenerate_completion_is_read_at_once():
    """White space without end: tried in every split, it would take hours."""
    spec = ChainSpec.from_yaml(CONFIGS / "pure_one_step.yaml")
    assert not parse_chain("\n" * 7000, spec).is_well_formed
    assert parse_chain("\n" * 7000 + IMAGE + "\n" * 7000, spec).is_well_formed
