"""Tags, texts and names: what is read of what people and programs write, and what is refused."""

from __future__ import annotations

import ast
import unicodedata
from pathlib import Path

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json, read_yaml
from realsr_r1.core.schema import Json
from realsr_r1.core.texts import decoded_text, read_text, same_named, split_lines, split_list, split_tags

SOURCE = Path(__file__).parents[2] / "src" / "realsr_r1"


@pytest.mark.parametrize(("written", "tags"), [
    ("cat, whiskers, fur\n", ["cat", "whiskers", "fur"]),
    ("cat | whiskers | fur", ["cat", "whiskers", "fur"]),  # RAM++'s own function
    ("cat; whiskers;fur;", ["cat", "whiskers", "fur"]),
    ("cat\nwhiskers\r\nfur\r", ["cat", "whiskers", "fur"]),
    ("cat\twhiskers\t\tfur", ["cat", "whiskers", "fur"]),
    ("猫｜胡须、毛，尾；眼", ["猫", "胡须", "毛", "尾", "眼"]),
    (["cat | fur", "eye;ear", "old  oak\xa0tree"], ["cat", "fur", "eye", "ear", "old oak tree"]),
    (["cat", 3, None, "fur"], ["cat", "fur"]),
    ("cafe\u0301", ["caf\xe9"]),
    ("t-shirt, rock 'n' roll, a/b, C++", ["t-shirt", "rock 'n' roll", "a/b", "C++"]),
    ("<|image|>, cat", ["<|image|>", "cat"]),  # whole, so that it is refused
    (" ,;|\n\t", []), ([], []),
])
def test_tags_are_divided_at_every_separator(written, tags):
    assert split_tags(written) == tags


def test_lists_and_lines_leave_out_what_is_empty():
    assert split_list(" a, b;c ,,") == ["a", "b;c"]
    assert split_lines("a\r\n\n  b \n") == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
def test_a_text_a_json_and_a_yaml_file_are_read_in_the_encodings_of_the_help(encoding, tmp_path):
    mark, name = ("\ufeff", encoding[:-4]) if encoding.endswith("-bom") else ("", encoding)
    for suffix, text in ((".txt", "caf\xe9"), (".json", '{"tag": "caf\xe9"}'), (".yaml", "tag: caf\xe9")):
        (tmp_path / f"a{suffix}").write_bytes((mark + text).encode(name))
    assert read_text(tmp_path / "a.txt") == "caf\xe9"
    assert read_json(tmp_path / "a.json", Json) == read_yaml(tmp_path / "a.yaml", Json) == {"tag": "caf\xe9"}


@pytest.mark.parametrize("data", [b"caf\xe9", "café".encode("utf-32"), b"\xff\xfea", b"\x80\x81",
                                  b"\x89PNG\r\n\x1a\n"])
def test_other_encodings_are_refused_by_the_name_of_the_file(data, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    for read in (lambda: decoded_text(data, "file a.txt").encode().decode("ascii"),
                 lambda: read_json(tmp_path / "a.txt", Json)):
        with pytest.raises((UserError, UnicodeDecodeError), match=r"a\.txt|ascii"):
            read()


def test_a_name_is_found_in_the_other_form_of_unicode(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é/ü.png")
    (tmp_path / decomposed).parent.mkdir()
    (tmp_path / decomposed).touch()
    assert same_named(tmp_path / "é/ü.png") == tmp_path / decomposed
    assert same_named(tmp_path / "é/o.png").name == "o.png"
    assert same_named(tmp_path / "x" / "y.png") == tmp_path / "x" / "y.png"


READERS = {  # call -> the only module that may make it
    "Image.open": "core/pictures.py", "json.load": "core/json_yaml.py", "json.loads": "core/json_yaml.py",
    "yaml.safe_load": None, "yaml.load": None, "yaml.SafeLoader": "core/json_yaml.py",
    "json.JSONDecoder": None, "cv2.imread": None, "codecs.open": None}
# Modules that divide something else than tags: numbers, styles, and the five labels of a degradation.
DIVIDE = ["data/building/arguments.py", "reporting/page.py", "restoring/options.py",
          "rewards/degradation.py", "rewards/metric_experts.py", "showing/style.py",
          "training/cold_start/trainer.py"]


def test_pictures_texts_and_json_have_one_reader_each():
    found = []
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if name in READERS and READERS[name] != place:
                    found.append(f"{place}:{node.lineno} {name}")
    assert not found, found


def test_tags_are_divided_in_one_place():
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".split") and any(
                    isinstance(argument, ast.Constant) and argument.value in (",", ";", "|", "\t")
                    for argument in node.args):
                found.add(path.relative_to(SOURCE).as_posix())
    assert sorted(found - {"core/texts.py"}) == DIVIDE


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="no /proc here")
def test_a_file_that_opens_and_cant_be_read_is_named():
    for read in (read_text, lambda path: read_json(path, dict)):
        with pytest.raises(UserError, match="/proc/self/mem can't be read"):
            read(Path("/proc/self/mem"))
