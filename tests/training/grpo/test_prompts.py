"""Records become prompts once, and are made anew when what they are made from changes."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.core.errors import UserError
from realsr_r1.data.records import load_dataset_dict
from realsr_r1.training.grpo.prompts import load_prompts, other_question, require_levels


@pytest.fixture
def load(dataset, processor, tmp_path):
    """`load_prompts` of the train split, with changes."""
    def call(**changes):
        arguments = dict(dataset_name=str(dataset), split="train", processor=processor, reward_columns={},
                         folder=tmp_path / "p",
                         max_prompt_length=5000)
        return load_prompts(**{**arguments, **changes})
    return call


def test_a_prompt_is_what_the_processor_writes(load, dataset, processor):
    prompts, records = load(), load_dataset_dict(dataset)["train"]
    assert len(prompts) == len(records) == 3
    for prompt, record in zip(prompts, records, strict=True):
        assert prompt["prompt"] == processor.encode_prompt(record["image"], record["problem"])


def test_columns_are_kept_and_the_image_has_a_name_that_trl_leaves_alone(load):
    assert set(load().column_names) == {"prompt", "lq", "problem", "tag", "degradation", "hq", "source",
                                        "crop"}


def test_they_are_made_once(load, tmp_path):
    load()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").rglob("*.arrow")}
    load()
    assert before and {path: path.stat().st_mtime_ns for path in (tmp_path / "p").rglob("*.arrow")} == before


def test_each_process_tokenises_its_part_and_all_read_the_whole(load, tmp_path):
    whole = load(folder=tmp_path / "whole")
    first = load(process=1, processes=2, folder=tmp_path / "parts")  # makes what is missing, were it alone
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.arrow")}
    assert len(made) == 2
    for process, processes in ((0, 2), (1, 2)):
        assert load(process=process, processes=processes,
                    folder=tmp_path / "parts")[:] == whole[:] == first[:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.arrow")} == made
    # more than records
    assert load(process=7, processes=9, folder=tmp_path / "parts")["prompt"][:] == whole["prompt"][:]


def test_nothing_is_written_into_the_dataset(load, dataset):
    before = sorted(dataset.rglob("*"))
    load(max_samples=2)
    assert sorted(dataset.rglob("*")) == before


def test_other_data_or_another_tokenizer_gives_other_prompts(load, processor, tiny_model):
    first = load()["prompt"][:]
    assert len(load(split="test")) == 2
    assert len(load(max_samples=2)) == 2
    other = ChainProcessor.from_pretrained(tiny_model)
    codes = other.image_tokenizer.state_dict()
    name = next(name for name in codes if "embedding" in name)
    codes[name].copy_(codes[name].flip(0))
    assert load(processor=other)["prompt"][:] != first
    smaller = ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                             dataclasses.replace(processor.settings, target_px=32))
    assert len(load(processor=smaller)["prompt"][0]) < len(first[0])
    assert load()["prompt"][:] == first


def test_max_samples_draws_with_the_seed(load):
    drawn = [tuple(load(max_samples=1, seed=seed)["source"]) for seed in range(6)]
    assert len(set(drawn)) > 1
    assert drawn == [tuple(load(max_samples=1, seed=seed)["source"]) for seed in range(6)]


@pytest.mark.parametrize("changes, message", [
    ({"dataset_name": "no/such"}, "no such dataset folder: no/such"),
    ({"split": "validation"}, "'validation'; it has train, test"),
    ({"reward_columns": {"beauty": ["hq", "votes"]}}, "'votes', which the beauty reward needs"),
    ({"max_prompt_length": 100}, "--max_prompt_length 100"),
])
def test_what_cannot_work_is_said(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_columns_are_checked_of_prompts_that_are_there_already(load):
    load()
    with pytest.raises(UserError, match="'votes'"):
        load(reward_columns={"beauty": ["votes"]})


def test_a_dataset_that_was_made_again_gives_new_prompts(load, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    first = load(dataset_name=str(copy))["source"][:]
    records = load_dataset_dict(copy)
    records["train"] = records["train"].select([1, 0])
    records.save_to_disk(str(tmp_path / "again"))
    shutil.rmtree(copy)
    (tmp_path / "again").rename(copy)
    assert load(dataset_name=str(copy))["source"][:] == [first[1], first[0]]


def test_a_question_that_is_given_is_asked_of_all(load, dataset, processor):
    prompts, records = load(question="Make it sharp."), load_dataset_dict(dataset)["train"]
    assert prompts["prompt"][0] == processor.encode_prompt(records[0]["image"], "Make it sharp.")
    assert set(prompts["problem"]) == {"Make it sharp."}
    assert other_question(prompts, processor) == "Make it sharp."
    assert other_question(records, processor) is None


def test_a_dataset_of_a_chain_with_other_descriptions_is_refused(processor):
    import datasets

    for described in (["a", "b", "c"], []):
        require_levels(datasets.Dataset.from_dict({"descriptions": [described]}), processor, "here", "model")
    with pytest.raises(UserError, match="here has 2 descriptions a record.*rough, middle, final"):
        require_levels(datasets.Dataset.from_dict({"descriptions": [["a", "b"]]}), processor, "here", "model")
