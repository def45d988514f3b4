"""Samples of a group as files, and the text log of rewards."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from realsr_r1.chain import ChainSpec
from realsr_r1.training.samples import append_reward_log, write_samples

CHAIN = ChainSpec.published()


@pytest.fixture
def record(photos_dir) -> dict:
    with Image.open(photos_dir / "coffee.png") as photo:
        small = photo.resize((48, 48))
    return {"source": "coffee.png", "crop": [0, 0, 48, 48], "tag": ["cup"], "degradation": ["light blur"] * 5,
            "problem": "?",
            "lq": small, "hq": small, "prompt": [1, 2]}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_broken_and_empty_completions_are_written(record, tmp_path):
    images = [[record["hq"]] * 3, [record["hq"]] * 5, []]
    write_samples(tmp_path, 12, record, ["a chain", "too many images", ""], images,
                  {"format": [1.0, 0.0, None]},
                  CHAIN)
    folder = tmp_path / "samples" / "step-000012"
    sections = ["final", "middle", "rough"]
    assert names(folder) == sorted(
        ["prompt.json", "lq.png", "hq.png", "rewards.json", "chain.json", "completion-0.txt",
         "completion-1.txt", "completion-2.txt",
         *(f"completion-{index}-{section}.png" for index in (0, 1) for section in sections)])
    assert json.loads((folder / "prompt.json").read_text()) == {
        key: record[key] for key in ("source", "crop", "tag", "degradation", "problem")}
    assert json.loads((folder / "rewards.json").read_text()) == {"format": [1.0, 0.0, None]}
    assert (folder / "completion-0.txt").read_text() == "a chain\n"


def test_a_record_of_the_seeds_form_has_samples_too(record, tmp_path):
    seed_form = {key: record[key] for key in ("tag", "problem", "lq")}
    write_samples(tmp_path, 1, seed_form, ["x"], [[]], {"format": [0.0]}, CHAIN)
    assert names(tmp_path / "samples" / "step-000001") == [
        "chain.json", "completion-0.txt", "lq.png", "prompt.json", "rewards.json"]


def test_samples_of_a_repeated_step_replace_the_old(record, tmp_path):
    for completions in (["one", "two"], ["three"]):
        write_samples(tmp_path, 1, record, completions, [[]] * len(completions),
                      {"format": [0.0] * len(completions)},
                      CHAIN)
    assert "completion-1.txt" not in names(tmp_path / "samples" / "step-000001")


def test_the_reward_log_grows(tmp_path):
    log = tmp_path / "deep" / "rewards.txt"
    append_reward_log(log, 1, 0, ["first", "second"], {"format": [1.0, None], "total": [1.0, 0.0]})
    append_reward_log(log, 1, 1, ["third"], {"format": [0.5], "total": [0.5]})
    assert log.read_text() == ("step 1, rank 0, completion 0: format 1.0, total 1.0\nfirst\n\n"
                               "step 1, rank 0, completion 1: format None, total 0.0\nsecond\n\n"
                               "step 1, rank 1, completion 0: format 0.5, total 0.5\nthird\n\n")
