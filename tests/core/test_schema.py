"""What files may hold: a value that has another form is refused in one line that names its place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import parsed_json, parsed_yaml, read_json, read_yaml
from realsr_r1.core.schema import Count, Json, Len, Number, Place, Text, TypedDict, checked, fields_of
from realsr_r1.rollout import RolloutConfig

SOURCE = Path(__file__).parents[2] / "src" / "realsr_r1"


class Row(TypedDict, extra_items=Json):
    name: Text
    mean: NotRequired[Number | None]


class Table(TypedDict, closed=True):
    rows: list[Row]
    kind: NotRequired[Literal["a", "b"]]
    tag: NotRequired[list[Text] | Text]
    count: NotRequired[Count]
    pair: NotRequired[Annotated[list[Number], Len(2, 2)]]
    file: NotRequired[Place]


ROWS = '"rows": []'


@pytest.mark.parametrize(("text", "said"), [
    ("[1]", r"it holds \[1\]; it must hold keys with values"),
    ("{}", "it has no key 'rows'"),
    ('{"rows": {}}', r"it: rows is \{\}; it must be a list"),
    ('{"rows": [{"name": "x"}, {"nam": 1}]}', r"it: rows\[1\] has no key 'name'"),
    ('{"rows": [{"name": true}]}', r"rows\[0\].name is True; it must be a text"),
    ('{"rows": [{"name": "\\ud800"}]}', "a text that UTF-8 can hold"),
    ('{"rows": [{"name": "x", "mean": NaN}]}', r"mean is nan; it must be a finite number"),
    ('{"rows": [{"name": "x", "mean": 1e999}]}', r"mean is inf; it must be a finite number"),
    ('{"rows": [{"name": "x", "mean": 1e300}]}', "a finite number"),
    ('{"rows": [{"name": "x", "mean": "1"}]}', "it must be a number"),
    ('{"rows": [{"name": "x", "mean": true}]}', "it must be a number"),
    ('{"rows": [{"name": "x", "else": "\\udfff"}]}', "made of texts and numbers"),
    (f'{{{ROWS}, "rwos": 1}}', "it has the unknown key 'rwos'; known are count, file, kind, pair, rows, tag"),
    (f'{{{ROWS}, "kind": "c"}}', "it must be 'a' or 'b'"),
    (f'{{{ROWS}, "tag": 5}}', "it must be a list or a text"),
    (f'{{{ROWS}, "tag": [5]}}', r"tag\[0\] is 5; it must be a text"),
    (f'{{{ROWS}, "count": 1.5}}', "it must be a whole number"),
    (f'{{{ROWS}, "count": -1}}', "it must be at least 0"),
    (f'{{{ROWS}, "count": 1{"0" * 30}}}', "it must be at most"),
    (f'{{{ROWS}, "pair": [1]}}', "at least 2 of them"),
    (f'{{{ROWS}, "file": "../x"}}', "it must be a path below its folder"),
    (f'{{{ROWS}, "file": "/x"}}', "it must be a path below its folder"),
    ("[" * 100_000, "not valid JSON"), ("1" * 5000, "not valid JSON"), ("", "not valid JSON"),
])
def test_a_value_of_another_form_is_refused_by_its_place(text, said):
    with pytest.raises(UserError, match=f"^it.*{said.removeprefix('it')}"):
        parsed_json(text, "it", Table)


def test_a_value_of_the_form_comes_back_as_it_is():
    value = {"rows": [{"name": "x", "mean": None, "else": [{"a": [1, True, None, "ü"]}]}], "tag": "x",
             "pair": [1, 2.5], "file": "a/b.json"}
    assert checked(Table, value, "it") == value


def test_the_way_out_ends_the_message():
    with pytest.raises(UserError, match="; copy it again$"):
        checked(dict[Text, Number], {"a": None}, "it", "copy it again")


@pytest.mark.parametrize("text", [
    "a: &a [x, x]\n" + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]"
                                 for n in range(12)),  # a billion laughs
    "a: &a [*a]", "? [1]\n: 2", "a: 2026-11-27", "1: 2", "a: 0x" + "f" * 6000,
    "a: !!python/object:os.system {}", "a: !!binary aGFsbG8=", "- " * 2000, "a: \0", "a: \x07"])
def test_yaml_that_is_no_plain_settings_is_refused(text):
    with pytest.raises(UserError, match="^it"):
        parsed_yaml(text, "it", dict[Text, Json])


def test_a_file_that_no_such_file_can_be_is_refused_by_its_size(tmp_path):
    file = tmp_path / "large.yaml"
    with open(file, "wb") as large:
        large.truncate(2**32)
    for read in (read_json, read_yaml):
        with pytest.raises(UserError, match="large.yaml has 4,096 MiB"):
            read(file, Json)


def test_the_form_of_a_dataclass_has_all_of_its_fields():
    form = fields_of(RolloutConfig)
    assert checked(form, {"seed": 3, "image_sizes": [[1, 2]]}, "it") == {"seed": 3, "image_sizes": [[1, 2]]}
    for values in ({"seed": "3"}, {"temperature": "hot"}, {"temperature": None}, {"sede": 3},
                   {"image_sizes": [["a"]]}):
        with pytest.raises(UserError, match="^it"):
            checked(form, values, "it")


def test_no_reader_takes_a_value_of_any_form():
    """Only lists whose items are checked one by one, so that the good ones are kept, may hold anything."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "read_json", "read_yaml", "parsed_json", "parsed_yaml", "checked"):
                for argument in [*node.args[1:], *(key.value for key in node.keywords)]:
                    if "Any" in {name.id for name in ast.walk(argument) if isinstance(name, ast.Name)}:
                        found.add(path.relative_to(SOURCE).as_posix())
    assert found == {"data/photos/model_process.py", "data/records.py"}
