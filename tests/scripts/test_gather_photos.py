"""The photographs of the tiny model: table and sidecars agree, and those in the wheels can be
gathered anywhere.
"""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path

import pytest
from PIL import Image

from realsr_r1.core.errors import UserError

from ..small import load_script

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "assets" / "photos"
TABLE = json.loads((PHOTOS / "photos.json").read_text(encoding="utf-8"))
NAMES = [photo["name"] for photo in TABLE]
WHEELS = {"scikit-image", "scikit-learn"}
WORDS_AT_MOST = {"rough": 12, "middle": 12, "final": 14}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.fixture(scope="module")
def script():
    return load_script("gather_photos")


def test_each_photo_is_listed_once_under_a_plain_name():
    assert len(set(NAMES)) == len(NAMES)
    assert all(re.fullmatch(r"[a-z]+", name) for name in NAMES)


def test_each_photo_has_an_author_and_a_licence():
    assert all(photo["author"] and photo["licence"] for photo in TABLE)


def test_photos_and_sidecars_belong_together():
    assert sorted(path.stem for path in (PHOTOS / "tags").iterdir()) == sorted(NAMES)
    assert sorted(path.stem for path in (PHOTOS / "descriptions").iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sidecars_name_what_is_seen_in_few_plain_words(name):
    tags = (PHOTOS / "tags" / f"{name}.txt").read_text(encoding="utf-8").strip().split(", ")
    descriptions = json.loads((PHOTOS / "descriptions" / f"{name}.json").read_text(encoding="utf-8"))
    assert 3 <= len(tags) <= 5 and len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[a-z]+", tag) for tag in tags)
    assert set(tags) <= set(words(descriptions["rough"]))
    assert list(descriptions) == list(WORDS_AT_MOST)
    for level, text in descriptions.items():
        assert re.fullmatch(r"[A-Z][A-Za-z ,]+\.", text)
        assert len(words(text)) <= WORDS_AT_MOST[level]


def test_at_least_three_photos_of_the_wheels_are_held_out_and_more_train():
    held_out = [photo["name"] for photo in TABLE if photo["package"] in WHEELS and photo["held_out"]]
    training = [photo["name"] for photo in TABLE if photo["package"] in WHEELS and not photo["held_out"]]
    assert len(held_out) >= 3
    assert len(training) > len(held_out)


def test_wheel_photos_are_gathered_as_rgb_png_of_at_most_1024_px_and_only_once(script, tmp_path, capsys):
    output = tmp_path / "photos"
    script.main(["--output", str(output)])
    written = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert sorted(written) == sorted(f"{photo['name']}.png" for photo in TABLE if photo["package"] in WHEELS)
    for path in output.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == "RGB" and max(image.size) <= 1024
    script.main(["--output", str(output)])
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == written
    assert "all already" in capsys.readouterr().out


def rcc(files: dict[str, bytes]) -> bytes:
    """A Qt resource archive (format 1) as Qt's `rcc` writes it: folders and files, not compressed."""
    folders: dict[str, dict] = {}
    for path, content in files.items():
        *parents, name = path.split("/")
        place = folders
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = content
    nodes, names, contents = [("", folders)], bytearray(), bytearray()
    entries = []
    for name, node in nodes:  # grows while it is walked: children of a folder lie side by side
        name_place = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(node, dict):
            entries.append(struct.pack(">IHII", name_place, 2, len(node), len(nodes)))
            nodes += sorted(node.items())
        else:
            entries.append(struct.pack(">IHHHI", name_place, 0, 0, 0, len(contents)))
            contents += struct.pack(">I", len(node)) + node
    tree = b"".join(entries)
    return struct.pack(">4s4I", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(contents)) + (
        tree + bytes(contents) + bytes(names))


def test_photos_of_unpacked_debian_packages_are_scaled_down_and_lost_ones_named(script, tmp_path, capsys):
    firsts = {}
    for photo in TABLE:
        if photo["package"] not in WHEELS:
            firsts.setdefault(photo["package"], photo)
    for photo in firsts.values():
        path = tmp_path / "root" / photo["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        Image.new("L", (2048, 1200), 90).save(picture, "WEBP" if "member" in photo else "JPEG")
        path.write_bytes(rcc({photo["member"]: picture.getvalue()}) if "member" in photo
                         else picture.getvalue())
    script.main(["--source", "all", "--debian_root", str(tmp_path / "root"), "--output",
                 str(tmp_path / "photos")])
    for photo in firsts.values():
        with Image.open(tmp_path / "photos" / f"{photo['name']}.png") as image:
            assert image.size == (1024, 600) and image.mode == "RGB"
    lost = [photo for photo in TABLE if photo["package"] not in WHEELS and photo not in firsts.values()]
    errors = capsys.readouterr().err
    assert all(f"left out {photo['name']}:" in errors for photo in lost)


def test_without_apt_the_error_names_the_packages_to_install(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError,
                       match="gcompris-qt-data lomiri-wallpapers-16.04 mate-backgrounds opencv-doc"):
        script.main(["--source", "all", "--debian_root", str(tmp_path), "--output", str(tmp_path / "photos")])


def test_an_output_that_is_a_file_is_refused(script, tmp_path):
    file = tmp_path / "photos"
    file.write_text("x")
    with pytest.raises(UserError, match="--output"):
        script.main(["--output", str(file)])
