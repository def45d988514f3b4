"""Outputs are whole or absent, whatever happens while they are written; unreadable inputs are
named.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

import pytest

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import (
    atomic_file,
    atomic_folder,
    check_new_file,
    clear_leftovers,
    existing_folder,
    resumable_folder,
    write_json,
)
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_in_a_folder_that_is_made_for_it(tmp_path):
    target = tmp_path / "new" / "out.txt"
    with atomic_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as partial:
        partial.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_json_keeps_names_of_any_kind(tmp_path):
    for value in ({"n": "größer"}, {"n": os.fsdecode(b"not utf-8: \xff, gr\xc3\xb6\xc3\x9fer")}):
        write_json(tmp_path / "it.json", value)
        assert read_json(tmp_path / "it.json", dict) == value


def test_a_folder_replaces_the_old_one_with_all_it_held(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_folder(target) as partial:
            (partial / name).write_text(name)
    assert names(target) == ["second"]
    assert names(tmp_path) == ["model"]


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    name = "x" * 255
    with atomic_folder(tmp_path / name) as partial:
        with atomic_file(partial / name) as file:
            file.write_text("whole")
    assert names(tmp_path) == [name] and names(tmp_path / name) == [name]


@pytest.mark.parametrize("write", [atomic_folder, lambda path: resumable_folder(path, "it", "done")])
def test_a_folder_behind_a_link_or_a_dot_is_the_one_that_is_replaced(write, tmp_path, monkeypatch):
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    for path in (tmp_path / "link", "."):
        monkeypatch.chdir(tmp_path / "disk" / "folder")
        with write(path) as partial:
            (partial / "done").touch()
        assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk") == ["folder"]
        assert names(tmp_path / "disk" / "folder") == ["done"]


def test_a_file_behind_a_link_is_the_one_that_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    for content in ("first", "second"):  # first the link leads to no file
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
        with atomic_file(tmp_path / "link") as partial:
            partial.write_text(content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "file").read_text() == content


@pytest.mark.parametrize("write", [
    atomic_file, atomic_folder, lambda path: resumable_folder(path, "it", "done"),
    lambda path: contextlib.nullcontext(check_new_file(path, "--output", "page.html"))])
def test_a_device_or_a_pipe_is_never_replaced(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(UserError, match=str(path)), write(path):
            raise AssertionError("nothing is written")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["link", "pipe"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(error), atomic_folder(target) as partial:
        (partial / "weights").write_text("half")
        raise error
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_an_error_before_the_first_result_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("half")
        raise ValueError
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, capsys):
    target = tmp_path / "out.bin"
    target.write_text("old")

    def main(argv):
        with atomic_file(target) as partial:
            partial.symlink_to("/dev/full")  # a device on which every write finds the disk full
            partial.write_bytes(bytes(100_000))

    with pytest.raises(SystemExit) as exit_info:
        run(main, [])
    err = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert err.count("\n") == 1 and "disk is full" in err
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.bin"]


def test_json_keeps_its_value_and_its_letters(tmp_path):
    value = {"tags": ["café", "雪"], "crop": [0, 1, 2, 3], "score": 0.5, "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", Json) == value
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b"9" * 5000, b"[" * 100_000],
                         ids=range(6))
def test_a_broken_json_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.json"):
        read_json(path, Json)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match="missing.json"):
        read_json(tmp_path / "missing.json", Json)


def test_a_folder_must_exist_and_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    assert existing_folder(tmp_path, "--images") == tmp_path
    for name in ("absent", "file"):
        with pytest.raises(UserError, match=rf"{name}.*--images"):
            existing_folder(tmp_path / name, "--images")


def test_a_resumable_folder_goes_on_after_an_error_and_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "out"
    for attempt in (1, 2):
        with pytest.raises(KeyboardInterrupt), resumable_folder(target, {"seed": 0}, "done.json") as work:
            assert (work / "half.txt").exists() == (attempt == 2)
            (work / "half.txt").write_text("half")
            raise KeyboardInterrupt
        assert not target.exists()
    with resumable_folder(target, {"seed": 0}, "done.json") as work:
        assert (work / "half.txt").exists()
        (work / "done.json").write_text("{}")
    assert names(target) == ["done.json", "half.txt"]
    assert names(tmp_path) == ["out"]


def test_a_resumable_folder_begins_anew_for_something_else_and_replaces_what_was_there(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(ValueError), resumable_folder(target, {"seed": 0}, "done.json") as work:
        (work / "half.txt").write_text("half")
        raise ValueError
    assert names(target) == ["old.txt"]
    with resumable_folder(target, {"seed": 1}, "done.json") as work:
        assert not (work / "half.txt").exists()
        (work / "done.json").write_text("{}")
    assert names(target) == ["done.json"]


def test_what_a_kill_between_the_last_renamings_left_is_cleared(tmp_path):
    target = tmp_path / "out"
    with resumable_folder(target, {"seed": 0}, "done.json") as work:
        (work / "done.json").write_text("{}")
    write_json(target / "made_from.json", {"seed": 0})
    (tmp_path / ".out.old").mkdir()
    clear_leftovers(target)
    assert names(tmp_path) == ["out"] and names(target) == ["done.json"]


def test_what_a_killed_process_was_writing_is_cleared_when_its_folder_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", {}, "done.json") as work:
        (work / ".list.json.1234.partial").write_text("half")
        raise KeyboardInterrupt
    with resumable_folder(tmp_path / "out", {}, "done.json") as work:
        assert names(work) == ["made_from.json"]
        (work / "done.json").write_text("{}")
