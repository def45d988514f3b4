"""Promises of the dataset's formats: what is checked, and which file, record and key an error
names.
"""

from __future__ import annotations

import json

import datasets
import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.data.records import (
    check_record,
    label_balance,
    label_counts,
    load_dataset_dict,
    read_list,
    require_columns,
    usual_keys,
)

FULL = {"image_path": "a.png", "problem": "p", "tag": ["cat"], "hq_path": "b.png",
        "degradation": ["light blur", "keep", "light noise", "heavy compression", "upsample"],
        "descriptions": ["r", "m", "f"], "source": "a.jpg", "crop": [0, 0, 9, 9]}
SEED = {key: FULL[key] for key in ("image_path", "problem", "tag")}


@pytest.mark.parametrize("record", [FULL, SEED, {**SEED, "tag": "cat, dog"}, {**SEED, "tag": []}])
def test_good_records_pass(record, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([record, record]))
    records = read_list(path)
    assert records == [record, record]
    check_record(record, usual_keys(records))


@pytest.mark.parametrize("key", FULL)
def test_a_missing_key_is_named(key):
    broken = {name: value for name, value in FULL.items() if name != key}
    with pytest.raises(UserError, match=rf"has no key '{key}'"):
        check_record(broken, usual_keys([FULL, broken, FULL]))


def test_a_key_that_most_records_have_not_is_named():
    with pytest.raises(UserError, match="has the key 'crop', which most records don't have"):
        check_record({**SEED, "crop": [0, 0, 9, 9]}, usual_keys([SEED, SEED, FULL]))
    check_record({**SEED, "extra": 1}, usual_keys([SEED]))


@pytest.mark.parametrize("key, value", [
    ("image_path", 3), ("tag", [1]), ("degradation", ["light blur"]), ("descriptions", "text"),
    ("crop", [1, 2, 3])])
def test_a_wrong_value_is_named(key, value):
    with pytest.raises(UserError, match=f"its '{key}' must be"):
        check_record({**FULL, key: value}, usual_keys([FULL]))


@pytest.mark.parametrize("records", [[], {}, "text", None])
def test_what_is_no_list_is_refused(records, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="some.json holds"):
        read_list(tmp_path / "some.json")


def test_what_is_no_object_is_no_record():
    for record in (3, "text", [], None):
        with pytest.raises(UserError, match="must be an object with image_path, problem, tag"):
            check_record(record, usual_keys([record]))


def test_a_folder_without_a_dataset_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(folder)):
            load_dataset_dict(folder)


def test_a_damaged_dataset_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"tag": ["a"]})}).save_to_disk(
        str(tmp_path / "d"))
    (tmp_path / "d/train/data-00000-of-00001.arrow").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=str(tmp_path / "d")):
        load_dataset_dict(tmp_path / "d")


def test_a_description_of_another_type_is_named_where_the_dataset_is_read(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"tag": ["a"]})}).save_to_disk(str(tmp_path))
    info = tmp_path / "train" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "description": 0}))
    with pytest.raises(UserError, match="train/dataset_info.json.*description"):
        load_dataset_dict(tmp_path)


def test_missing_columns_are_named_with_their_reason():
    dataset = datasets.Dataset.from_dict({"tag": [["a"]], "problem": ["p"]})
    require_columns(dataset, ["tag"], "reward understanding")
    with pytest.raises(UserError, match="no column 'degradation', which reward degradation needs; it has "
                                        "tag, problem"):
        require_columns(dataset, ["degradation"], "reward degradation")


def test_label_balance_counts_every_item():
    lines = label_balance(label_counts([
        FULL, {**FULL, "degradation": ["heavy blur", *FULL["degradation"][1:]]}]))
    assert lines[:2] == ["blur: light 50% medium 0% heavy 50%", "resize: upsample 0% downsample 0% keep 100%"]
    assert label_counts([SEED]) == {} and label_balance({}) == []
