"""realsr-r1 restore on folders as users have them: subfolders, other kinds of files, names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from realsr_r1.restore import BAD_ITEMS_FILE, find_photos, main

from .small import exit_code, photo, write_model


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo("chelsea", 32).save(folder / name, {"jfif": "JPEG"}.get(name.rpartition(".")[2].lower()))
    return folder


def test_recursive_keeps_the_tree_and_names_what_is_not_read(tiny_model, tmp_path, capsys):
    model = write_model(tmp_path / "model", tiny_model)
    (model / os.fsdecode(b"\xff")).touch()  # names of any kind, in the model's folder, too
    source = fill(tmp_path / "photos", "a.avif", "sub/B.JFIF", "sub/deep/c.jpg.png", ".hidden/d.png")
    (source / "sub" / "raw.NEF").write_bytes(b"MM\0*")
    (source / "sub" / "notes.txt").write_text("no picture")

    def restore(output: str, *more: str) -> int:
        return exit_code(main, ["--model", str(model), "--input", str(source), "--output",
                                str(tmp_path / output), "--device", "cpu", *more])

    assert restore("flat") == 0
    assert "3 photos" not in capsys.readouterr().out and (tmp_path / "flat" / "a.png").is_file()
    assert restore("tree", "--recursive") == 2
    assert "raw.NEF" in (tmp_path / "tree" / BAD_ITEMS_FILE).read_text(encoding="utf-8")
    made = [path.relative_to(tmp_path / "tree").as_posix() for path in (tmp_path / "tree").rglob("*.png")
            if "chains" not in path.parts]
    assert sorted(made) == ["a.png", "sub/B.png", "sub/deep/c.jpg.png"]
    assert (tmp_path / "tree" / "chains" / "sub" / "deep" / "c.jpg" / "chain.txt").is_file()
    assert restore("tree", "--recursive", "--skip_bad") == 0  # nothing is left to do
    assert "3 of 3 photos are restored" in capsys.readouterr().out


def test_a_single_photo_that_is_none_is_said_before_the_model_is_loaded(tiny_model, tmp_path, capsys,
                                                                        monkeypatch):
    model = write_model(tmp_path / "model", tiny_model)
    (tmp_path / "fake.jpg").write_text("no picture")
    monkeypatch.setattr("realsr_r1.restore.load_restorer", lambda args: pytest.fail("too late"))
    assert exit_code(main, ["--model", str(model), "--input", str(tmp_path / "fake.jpg"), "--output",
                            str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "fake.jpg can't be read as an image" in said and "others" not in said
    assert not (tmp_path / "out").exists()


def test_photos_in_subfolders_are_not_passed_over_silently(tmp_path, capsys):
    names, _ = find_photos(fill(tmp_path, "a.png", "sub/b.png", "sub/c.png"), "png")
    assert list(names.values()) == ["a"]
    assert "2 photos in its subfolders are passed over; --recursive" in capsys.readouterr().out


def test_pipes_are_not_opened_and_links_to_nowhere_are_named(tmp_path):
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    names, unread = find_photos(tmp_path, "png", recursive=True)
    assert list(names.values()) == ["a"]
    assert sorted(path.name for path, _ in unread) == ["lost.png", "pipe.jpg"]


@pytest.mark.parametrize(("format", "left"), [("png", []), ("webp", ["x" * 251])])
def test_photos_with_long_names_are_restored_or_listed(format, left, tiny_model, tmp_path, capsys):
    source, output = fill(tmp_path / "photos", "a.png", "x" * 251 + ".png", "z.png"), tmp_path / "out"
    argv = ["--model", str(write_model(tmp_path / "model", tiny_model)), "--input", str(source), "--output",
            str(output), "--device", "cpu", "--format", format]
    assert exit_code(main, argv) == (2 if left else 0)
    assert ("its name is too long" in capsys.readouterr().err) == bool(left)
    made = {path.stem for path in output.glob(f"*.{format}")}
    assert made == {"a", "x" * 251, "z"} - {*left}


@pytest.mark.parametrize(("names", "more", "reason"), [
    (["sub/a.png"], [], "1 in its subfolders, which --recursive reads"),
    (["sub/a.png", "sub/a.jpg"], ["--recursive"], "would both become sub/a.png"),
    (["a.png", "a/b.png"], ["--recursive"], "the chain of"),
    (["a.png", "chains/a/lq.png"], ["--recursive"], "would be written among the chains of the other photos"),
    (["a.png"], ["--recursive", "inside"], "lies inside --input"),
])
def test_folders_that_can_not_be_kept_apart_are_refused(names, more, reason, tmp_path, capsys, tiny_model):
    source = fill(tmp_path / "photos", *names)
    output = source / "out" if "inside" in more else tmp_path / "out"
    assert exit_code(main, ["--model", str(tiny_model), "--input", str(source), "--output", str(output),
                            *[flag for flag in more if flag.startswith("-")]]) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_of_unread_pictures_says_so(tmp_path, capsys, tiny_model):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.cr3").write_bytes(b"\0\0\0\x18ftypcrx ")
    assert exit_code(main, ["--model", str(tiny_model), "--input", str(tmp_path / "photos"), "--output",
                            str(tmp_path / "out")]) == 2
    assert "a.cr3: it is a camera's raw file" in capsys.readouterr().err
