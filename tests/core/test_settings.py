"""A recipe's values are read, and refused, as flags are; numbers have their ranges."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.core.settings import check_ranges, parse


@dataclass
class Settings:
    steps: int = 5
    rate: float = 0.1
    name: str | None = "a"
    names: list[str] = field(default_factory=list)
    way: str = field(default="one", metadata={"choices": ["one", "no"]})
    fast: bool = False
    more: dict[str, Any] | str | None = None


def parsed(tmp_path, text: str, *flags: str) -> Settings:
    (tmp_path / "recipe.yaml").write_text(text)
    (settings,) = parse((Settings,), ["--config", str(tmp_path / "recipe.yaml"), *flags], "test")
    return settings


def test_a_recipe_gives_values_and_flags_win_over_it(tmp_path):
    text = "steps: 3\nrate: 2e-6\nnames: [x, 1]\nfast: yes\nway: no\nmore: {a: 1}\nname: null\n"
    found = parsed(tmp_path, text, "--steps", "4")
    assert found == Settings(4, 2e-6, None, ["x", "1"], "no", True, {"a": 1})
    assert parsed(tmp_path, "names: x\n").names == ["x"] and parsed(tmp_path, "names: []\n").names == []
    assert parsed(tmp_path, "rate: -1\nname: -x\n") == Settings(rate=-1.0, name="-x")


@pytest.mark.parametrize(("text", "said"), [
    ("steps: 1.5", "--steps"), ("steps: hot", "--steps"), ("steps: true", "--steps"),
    ("steps: [1]", "steps is"),
    ("steps: null", "steps is null"), ("steps: {a: 1}", "steps is"), ("rate: true", "--rate"),
    ("rate: [1, 2]", "rate is"), ("names: [[1]]", r"names\[0\]"), ("names: [null]", r"names\[0\]"),
    ("way: two", "--way"), ("fast: maybe", "--fast"), ("name: [a]", "name is"),
    ("setps: 1", "no setting 'setps'"),
    ("more: [1]", "more is"), ("env: [1]", "env"), ("env: {A: [1]}", "env"), ('env: {"A=B": "x"}', "env"),
    ("5: 1", "a key must be a text"), ("steps: 9999999999999999999999", "made of texts and numbers"),
])
def test_a_value_of_another_kind_is_refused_with_its_name(text, said, tmp_path):
    with pytest.raises(UserError, match=said):
        parsed(tmp_path, text)


def test_a_recipe_may_set_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("REALSR_R1_TEST", "before")
    parsed(tmp_path, "env: {REALSR_R1_TEST: 3}\n")
    assert os.environ["REALSR_R1_TEST"] == "3"


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_file_of_deepspeed_that_is_no_object_is_refused(text, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(UserError, match="zero.json .*local_scripts"):
        parse((Settings,), ["--deepspeed", str(file)], "test")
    file.write_text(json.dumps({}))
    with pytest.raises(UserError, match="--deepspeed"):  # this command doesn't know it
        parse((Settings,), ["--deepspeed", str(file)], "test")


def test_a_number_out_of_its_range_is_refused_with_the_range():
    check_ranges(Namespace(a=1, b=None), {"a": (1, 2), "b": (0, 1)})
    for value in (0, 3, float("nan")):
        with pytest.raises(UserError, match=f"--a is {value}; it must be from 1 to 2"):
            check_ranges(Namespace(a=value), {"a": (1, 2)})
