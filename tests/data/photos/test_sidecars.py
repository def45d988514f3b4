"""Tags and descriptions: which of the places they may lie in is taken, and what is said of broken
ones.
"""

from __future__ import annotations

import json

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.data.photos.sidecars import JsonLines, reader
from realsr_r1.data.photos.sources import FilePlace, Photo, TarPlace


def lines(path, *values):
    path.write_text("".join(f"{value}\n" for value in values))
    return path


@pytest.fixture
def tar(tmp_path):
    """Two samples of a tar; only the second has tags. `a` has none."""
    path = tmp_path / "part.tar"
    path.write_bytes(b"cat, fur")
    return [Photo("part/a.png", TarPlace(str(path), ".png", {".png": (0, 1)})),
            Photo("part/b.png", TarPlace(str(path), ".png", {".png": (0, 1), ".txt": (0, 8)}))]


def test_what_lies_beside_photos_is_found_though_the_first_has_none(tar):
    found = reader(None, "tag", tar)
    assert found.read(tar[1]) == ["cat", "fur"]
    with pytest.raises(UserError, match="part/a.png"):
        found.read(tar[0])


def test_descriptions_that_half_of_the_photos_have_are_used_and_fewer_are_not_which_is_said(tmp_path, capsys):
    texts = json.dumps({"rough": "A cat.", "middle": "A cat.", "final": "A cat."}).encode()
    (tmp_path / "part.tar").write_bytes(texts)
    places = ({".png": (0, 1)}, {".png": (0, 1), ".json": (0, len(texts))}, {".png": (0, 1)})
    photos = [Photo(f"part/{name}.png", TarPlace(str(tmp_path / "part.tar"), ".png", place))
              for name, place in zip("abc", places)]
    found = reader(None, "description", photos[:2])  # though the first has none
    assert found.read(photos[1]) == ["A cat."] * 3
    with pytest.raises(UserError, match="part/a.png"):
        found.read(photos[0])
    assert capsys.readouterr().out == ""
    assert reader(None, "description", photos) is None
    assert "only 1 of the first 3 photos have descriptions" in capsys.readouterr().out
    assert reader(None, "description", photos[::2]) is None


def test_a_file_among_tars_has_nothing_beside_it(tar):
    file = Photo("c.png", FilePlace("c.png"))
    with pytest.raises(UserError, match="c.png lies in no tar"):
        reader(None, "tag", [file, *tar]).read(file)


def test_photos_without_anything_beside_them_have_no_reader(tar):
    assert reader(None, "tag", tar[:1]) is None
    assert reader(None, "tag", [Photo("c.png", FilePlace("c.png"))]) is None


def test_numbers_without_end_brackets_without_end_and_no_names_are_listed(tmp_path):
    path = lines(tmp_path / "known.jsonl", '{"image": "a.png", "tag": ' + "9" * 5000 + "}", "[" * 100_000,
                 '{"image": ".", "tag": "cat"}', '{"image": "b.png", "tag": "cat", "error": 3}')
    known = JsonLines.index(path, "tag")
    assert known.read(Photo("b.png", FilePlace("b.png"))) == ["cat"]
    orphans = {item.name: item.reason for item in known.orphans(["b"], "images")}
    assert set(orphans) == {f"known.jsonl:{number}" for number in (1, 2, 3)}
    assert "names no photo" in orphans["known.jsonl:3"]


def test_what_a_model_failed_on_is_said_of_its_photo(tmp_path):
    path = lines(tmp_path / "known.jsonl",
                 json.dumps({"image": "a.png", "error": "tagger m took longer than 3 s"}))
    with pytest.raises(UserError, match="took longer than 3 s"):
        JsonLines.index(path, "tag").read(Photo("a.png", FilePlace("a.png")))
