"""Promises of realsr-r1 create-json about bad photos, tags, lists and folders: the good items
finish, the bad ones are listed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realsr_r1.core.errors import run
from realsr_r1.create_json import main
from realsr_r1.data.records import load_dataset_dict

TINY = Path(__file__).parents[1] / "configs" / "degradation" / "tiny.yaml"


def bomb(path):
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
                     + chunk(b"IEND", b""))


@pytest.fixture
def folder(photos_dir, tmp_path):
    """Photos of all kinds, good and bad, with their tags."""
    images, tags = tmp_path / "images", tmp_path / "tags"
    images.mkdir()
    tags.mkdir()
    with Image.open(photos_dir / "chelsea.png") as image:
        photo = image.convert("RGB").resize((150, 100))
    photo.save(images / "good.png")
    photo.convert("CMYK").save(images / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(images / "turned.jpg", exif=exif)
    grey = np.asarray(photo.convert("L"), dtype=np.uint16)
    Image.fromarray(grey * 257).save(images / "sixteen.png")
    photo.convert("P").save(images / "palette.png")
    photo.save(images / "corrupt.jpg")
    data = (images / "corrupt.jpg").read_bytes()
    (images / "corrupt.jpg").write_bytes(data[:len(data) // 2])
    (images / "text.jpg").write_text("no photo")
    photo.save(images / "moving.gif", save_all=True, append_images=[photo.rotate(90)])
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    bomb(images / "bomb.png")
    photo.save(images / "twin.png")
    photo.save(images / "twin.bmp")
    photo.save(images / "latin.png")
    photo.save(images / "many.png")
    for path in images.iterdir():
        (tags / f"{path.stem}.txt").write_text("cat, fur")
    (tags / "latin.txt").write_bytes("café".encode("latin-1"))
    (tags / "many.txt").write_text(", ".join(f"tag {number}" for number in range(10_000)))
    return images, tags


def flags(folder, output):
    return ["--images", str(folder[0]), "--tags", str(folder[1]), "--output", str(output), "--crop_px", "48",
            "--degradation", str(TINY), "--num_proc", "1"]


def exit_code(argv):
    with pytest.raises(SystemExit) as stopped:
        run(main, argv)
    return stopped.value.code


def test_good_photos_finish_and_every_bad_one_is_listed_with_its_reason(folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert exit_code(flags(folder, output)) == 2
    assert "8 bad item(s)" in capsys.readouterr().err
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (output / "rejected.jsonl").read_text().splitlines())}
    expected = {"corrupt.jpg": "can't be read", "text.jpg": "can't be read", "moving.gif": "2 frames",
                "dot.png": "1x1 px",
                "bomb.png": "2500000000 pixels", "twin.png": "twin.bmp has the same name",
                "latin.png": "not UTF-8",
                "many.png": "10000 tags"}
    assert set(listed) == set(expected)
    assert all(part in listed[name] for name, part in expected.items())
    train = load_dataset_dict(output)["train"]
    good = {"cmyk.jpg", "good.png", "palette.png", "sixteen.png", "turned.jpg", "twin.bmp"}
    assert set(train["source"]) == good
    assert exit_code([*flags(folder, output), "--skip_bad"]) == 0


def test_cmyk_sixteen_bits_and_turned_photos_look_like_the_photo(folder, tmp_path):
    exit_code(flags(folder, tmp_path / "out"))
    hq = {row["source"]: np.asarray(row["hq"], dtype=float)
          for row in load_dataset_dict(tmp_path / "out")["train"]}
    assert np.abs(hq["cmyk.jpg"] - hq["good.png"]).mean() < 8
    assert np.abs(hq["sixteen.png"].mean(-1) - hq["good.png"].mean(-1)).mean() < 12
    assert np.abs(np.rot90(hq["turned.jpg"], 1) - hq["good.png"]).mean() < 8


def test_a_path_that_leaves_the_datasets_root_is_listed(folder, tmp_path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    os.replace(folder[0] / "good.png", root / "good.png")
    paths = ["good.png", "../images/cmyk.jpg", str(folder[0] / "turned.jpg"), "gone.png", "a\0b.png"]
    (root / "list.json").write_text(json.dumps([{"image_path": path, "problem": "p", "tag": ["cat"]}
                                                for path in paths]))
    output = tmp_path / "out"
    assert exit_code(["--json", str(root / "list.json"), "--output", str(output), "--num_proc", "1"]) == 2
    reasons = [json.loads(line)["reason"] for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [f"record {number} of" in reason for number, reason in enumerate(reasons, 1)] == [True] * 4
    assert all("lies outside of" in reason and "--images" in reason for reason in reasons[:2])
    assert "No such file" in reasons[2] and "is no path" in reasons[3]
    assert len(load_dataset_dict(output)["train"]) == 1


def test_bad_lines_of_json_are_listed(folder, tmp_path):
    lines = tmp_path / "known.jsonl"
    lines.write_bytes(b'{"image": "good.png", "tag": "cat"}\n{"image": \nnot json\n{"tag": "cat"}\n'
                      b'{"image": "good.png", "tag": "dog"}\n'
                      b'{"image": "nowhere.png", "tag": "cat"}\n{"image": "cmyk.jpg", "tag": 3}\n\xff\n')
    for name in [path.name for path in folder[0].iterdir() if path.name not in ("good.png", "cmyk.jpg")]:
        (folder[0] / name).unlink()
    assert exit_code(flags((folder[0], lines), tmp_path / "out")) == 2
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())}
    assert set(listed) == {"cmyk.jpg", *(f"known.jsonl:{number}" for number in (2, 3, 4, 5, 6, 8))}
    assert ("as line 1 is" in listed["known.jsonl:5"] and "isn't in" in listed["known.jsonl:6"]
            and "no tags" in listed["cmyk.jpg"])
    assert list(load_dataset_dict(tmp_path / "out")["train"]["source"]) == ["good.png"]


def test_text_that_utf8_cannot_hold_is_listed(folder, tmp_path):
    """Names of files from old archives, and halves of surrogate pairs, which JSON can escape."""
    (tmp_path / "photos").mkdir()
    for name in ("good.png", "turned.jpg"):
        shutil.copy(folder[0] / name, tmp_path / "photos")
    shutil.copy(folder[0] / "good.png", os.fsencode(tmp_path) + b"/photos/caf\xe9.png")
    (tmp_path / "known.jsonl").write_text(r'''{"image": "good.png", "tag": "cat"}
        {"image": "turned.jpg", "tag": ["cat", "\ud800"]}
        {"image": "\ud800.png", "tag": "cat"}''')
    shutil.copy(folder[1] / "good.txt", os.fsencode(folder[1]) + b"/caf\xe9.txt")
    for tags, expected in ((tmp_path / "known.jsonl", {"turned.jpg", "known.jsonl:3", r"caf\udce9.png"}),
                           (folder[1], {r"caf\udce9.png"})):
        output = tmp_path / f"out of {tags.stem}"
        assert exit_code(flags((tmp_path / "photos", tags), output)) == 2
        listed = {item["name"] for item in map(json.loads,
                                               (output / "rejected.jsonl").read_text().splitlines())}
        assert expected <= listed
        assert "good.png" in load_dataset_dict(output)["train"]["source"]


def test_a_record_that_columns_cannot_hold_is_named(folder, tmp_path, capsys):
    for key, value in (("tag", "\ud800"), ("crop", [0, 0, 2**31, 1])):
        records = tmp_path / "list.json"
        records.write_text(json.dumps([{"image_path": "good.png", "problem": "p", "tag": "cat", key: value}]))
        assert exit_code(["--json", str(records), "--images", str(folder[0]), "--output",
                          str(tmp_path / "out")]) == 2
        assert f"record 0 of {records}: its '{key}' must be" in capsys.readouterr().err


def test_a_list_in_a_folder_of_an_old_name_with_a_file_too_large_for_a_column(folder, tmp_path):
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(folder[0], source)
    os.truncate(source / "turned.jpg", 2**30 + 1)
    (source / "list.json").write_text(json.dumps([{"image_path": name, "problem": "p", "tag": "cat"}
                                                  for name in ("turned.jpg", "good.png")]))
    output = tmp_path / "out"
    assert exit_code(["--json", str(source / "list.json"), "--output", str(output), "--num_proc", "1"]) == 2
    (item,) = map(json.loads, (output / "rejected.jsonl").read_text().splitlines())
    assert "turned.jpg has 1.0 GiB" in item["reason"]
    assert len(load_dataset_dict(output)["train"]) == 1


def test_a_read_only_output_is_named(folder, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        disk.chmod(0o555)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", disk]).returncode != 0:
        pytest.skip("root writes anywhere but on a read-only disk, and can't mount one here")
    try:
        assert exit_code(flags(folder, disk / "out")) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert str(disk) in line and "can't be written" in line
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("flag, place, says", [
    ("--evaluation_photos", "out/benchmark", "--evaluation_photos .* lies inside --output"),
    ("--annotation", "out/models.yaml", "--annotation .* lies inside --output"),
    ("--test_photos", "out/names.txt", "--test_photos .* lies inside --output")])
def test_an_output_that_holds_the_input_is_refused(folder, tmp_path, capsys, flag, place, says):
    path = tmp_path / place
    if path.suffix:
        path.parent.mkdir(parents=True)
        path.write_text("")
    else:
        path.mkdir(parents=True)
    value = f"@{path}" if flag == "--test_photos" else str(path)
    assert exit_code([*flags(folder, tmp_path / "out"), flag, value]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert path.exists()


@pytest.mark.parametrize("place, flag", [(0, "images"), (1, "tags")])
def test_an_output_among_the_photos_or_tags_is_refused(folder, capsys, place, flag):
    assert exit_code(flags(folder, folder[place] / "dataset")) == 2
    assert f"lies inside --{flag}" in capsys.readouterr().err
    assert not (folder[place] / "dataset").exists()


def test_an_output_given_by_a_link_is_made_where_the_link_points(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert exit_code([*flags(folder, tmp_path / "link"), "--skip_bad"]) == 0
    assert (tmp_path / "link").is_symlink() and load_dataset_dict(tmp_path / "disk")


def test_names_of_test_photos_that_are_not_text_are_named(folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_bytes(b"good.png\ncaf\xe9.png\n")
    assert exit_code([*flags(folder, tmp_path / "out"), "--test_photos", f"@{tmp_path}/names.txt"]) == 2
    assert "names.txt (given by --test_photos) is not UTF-8" in capsys.readouterr().err


def test_names_of_test_photos_in_a_file_may_hold_commas(folder, tmp_path):
    for place in folder:
        for path in place.glob("good.*"):
            os.replace(path, path.with_stem("good, really"))
    (tmp_path / "names.txt").write_text("good, really.png\n\n cmyk \n", encoding="utf-8-sig")
    assert exit_code([*flags(folder, tmp_path / "out"), "--test_photos", f"@{tmp_path}/names.txt",
                      "--skip_bad"]) == 0
    assert set(load_dataset_dict(tmp_path / "out")["test"]["source"]) == {"good, really.png", "cmyk.jpg"}


def test_an_evaluation_photo_that_cannot_be_read_is_listed(folder, tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "torn.jpg").write_bytes(b"no photo")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/benchmark/caf\xe9.jpg")).write_bytes(b"no photo")
    (tmp_path / "benchmark" / "torn.tar").write_bytes(b"no tar" * 200)
    argv = [*flags(folder, tmp_path / "out"), "--evaluation_photos", str(tmp_path / "benchmark")]
    assert exit_code(argv) == 2
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())}
    for name in ("torn.jpg", r"caf\udce9.jpg"):
        assert "its copies can't be kept out of training" in listed[name]
    assert "can't be read to its end" in listed["torn.tar"]


def test_evaluation_photos_that_are_none_are_named(folder, tmp_path, capsys):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "photos.zip").write_bytes(b"PK")
    assert exit_code([*flags(folder, tmp_path / "out"), "--evaluation_photos",
                      str(tmp_path / "benchmark")]) == 2
    assert "benchmark (given by --evaluation_photos) has no images" in capsys.readouterr().err


def test_when_no_photo_can_be_used_the_first_reason_is_said(folder, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "part.tar").write_bytes(b"no tar at all" * 100)
    assert exit_code(flags((tmp_path / "tars", folder[1]), tmp_path / "out")) == 2
    assert ("no good item among " in (said := capsys.readouterr().err)
            and "part.tar can't be read to its end" in said)
    assert "part.tar" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_a_photo_whose_crops_have_too_long_a_path_is_listed(folder, tmp_path):
    """Its own path is just short enough for the system."""
    deep, output = folder[0], tmp_path / ("o" * 200)
    while len(os.fsencode(deep)) < 4096 - 150:
        deep /= "d" * 100
        deep.mkdir()
    shutil.copy(folder[0] / "good.png", deep / "deep.png")
    for path in folder[0].iterdir():
        if path.is_file() and path.name != "good.png":
            path.unlink()
    names = [str(path.relative_to(folder[0])) for path in (folder[0] / "good.png", deep / "deep.png")]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps({"image": name, "tag": "cat"}) + "\n"
                                                  for name in names))
    assert exit_code(flags((folder[0], tmp_path / "known.jsonl"), output)) == 2
    (item,) = map(json.loads, (output / "rejected.jsonl").read_text().splitlines())
    assert item["name"].endswith("deep.png") and "can't be written" in item["reason"]
    assert list(load_dataset_dict(output)["train"]["source"]) == ["good.png"]


def test_a_path_in_a_list_that_is_too_long_is_listed(folder, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"image_path": path, "problem": "p", "tag": "cat"}
                                                    for path in ("n" * 300, "good.png")]))
    argv = ["--json", str(tmp_path / "list.json"), "--images", str(folder[0]), "--output",
            str(tmp_path / "out"), "--num_proc", "1"]
    assert exit_code(argv) == 2
    assert len(load_dataset_dict(tmp_path / "out")["train"]) == 1


BAD_TAGS = {"empty": b"", "commas": b" , ,\n", "long": b"x" * 5000, "null": b"cat, a\0b",
            "image": b"cat, <|image|>",
            "closing": b"fur</degradation>", "opening": b"<final_image>, cat"}


def test_tags_that_no_chain_can_hold_are_listed(folder, tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for name, data in {**BAD_TAGS, "fine": b"less < more, cat > dog, caf\xc3\xa9"}.items():
        shutil.copy(folder[0] / "good.png", images / f"{name}.png")
        (folder[1] / f"{name}.txt").write_bytes(data)
    for path in folder[1].iterdir():
        if path.stem not in {*BAD_TAGS, "fine"}:
            path.unlink()
    assert exit_code(flags((images, folder[1]), tmp_path / "out")) == 2
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())}
    expected = {"empty": "is empty", "commas": "is empty", "long": "a tag of 5000 characters",
                "null": "control character",
                "image": "<|image|>", "closing": "</degradation>", "opening": "<final_image>"}
    assert set(listed) == {f"{name}.png" for name in expected}
    assert all(part in listed[f"{name}.png"] and f"{name}.txt" in listed[f"{name}.png"]
               for name, part in expected.items())
    assert load_dataset_dict(tmp_path / "out")["train"]["tag"][:] == [["less < more", "cat > dog", "café"]]


def test_records_of_a_list_that_no_chain_can_hold_are_listed(folder, tmp_path):
    labels, texts = ["light blur", "keep", "light noise", "light compression", "keep"], ["A cat.", "A cat.",
                                                                                         "A cat."]
    good = {"image_path": "good.png", "hq_path": "good.png", "problem": "p", "tag": "cat",
            "degradation": labels,
            "descriptions": texts}
    changes = [{}, {"tag": ["cat", "</degradation>"]}, {"tag": "x" * 101},
               {"degradation": ["foo", "</degradation>", *labels[2:]]},
               {"degradation": ["light blur, keep", *labels[1:]]}, {"degradation": ["", *labels[1:]]},
               {"descriptions": ["A cat.", "See <|image|>", "A cat."]},
               {"descriptions": ["A cat.", "y" * 2001, "A cat."]},
               {"tag": []}]
    (tmp_path / "list.json").write_text(json.dumps([{**good, **change} for change in changes]))
    argv = ["--json", str(tmp_path / "list.json"), "--images", str(folder[0]), "--output",
            str(tmp_path / "out"), "--num_proc", "1"]
    assert exit_code(argv) == 2
    names = [json.loads(line)["name"] for line in (tmp_path / "out/rejected.jsonl").open()]
    assert names == [f"list.json:{number}" for number in range(1, 8)]
    assert load_dataset_dict(tmp_path / "out")["train"]["tag"][:] == [["cat"], []]


def test_links_to_nothing_and_what_is_no_file_are_listed(folder, tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    shutil.copy(folder[0] / "good.png", images)
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (images / "holiday").symlink_to(tmp_path / "unmounted")
    (images / "circle").symlink_to(images / "circle")
    (images / "again").symlink_to(images)  # no folder is entered twice
    os.mkfifo(images / "pipe.jpg")
    assert exit_code(flags((images, folder[1]), tmp_path / "out")) == 2
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())}
    assert {"gone.png", "holiday", "circle", "pipe.jpg"} <= set(listed) and "again" not in listed
    assert ("nowhere.png): No such file" in listed["gone.png"]
            and "neither a file nor a folder" in listed["pipe.jpg"])
    assert list(load_dataset_dict(tmp_path / "out")["train"]["source"]) == ["good.png"]


@pytest.mark.parametrize("place", ["/proc/dataset", "{folder}/good.txt/out", "{folder}/" + "n" * 300,
                                   "a\0b", "a\udcffb"],
                         ids=["proc", "below a file", "long", "null", "not text"])
def test_an_output_that_cannot_be_made_is_named(folder, tmp_path, capsys, place):
    (tmp_path / "photos").mkdir()
    shutil.copy(folder[0] / "good.png", tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    output = place.format(folder=folder[1]) if "nnn" not in place else place.format(folder=tmp_path)
    assert exit_code(flags((tmp_path / "photos", folder[1]), output)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "--output" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--tagger", "--captioner", "--hf_dataset"])
def test_an_empty_name_of_a_model_or_dataset_is_named(folder, tmp_path, capsys, flag):
    argv = [*flags(folder, tmp_path / "out"), flag, ""]
    if flag != "--captioner":
        argv = [word for word in argv if word not in ("--tags", str(folder[1]))]
    assert exit_code(argv) == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("text, says", [
    ("first: {resize_probabilities: [0.3333333, 0.3333333, 0.3333333]}", None),
    ("first: {kernel_probabilities: [1, 0, 0, 0, 0, 0.0000001]}", None),
    ("scale: 1" + "0" * 400, "scale is 1"),
    ("first: {kernel_size: [7, 1000001]}", "below 10000"), ("second: {kernel_size: [7, 103]}", "up to 101"),
    ("first: {resize_range: [1, 200]}", "up to 8"), ("first: {blur_sigma: [1, .nan]}", "must hold numbers"),
    ("first: {x: 2020-13-45}", "not valid YAML")])
def test_odd_numbers_of_a_degradation_work_or_are_named(folder, tmp_path, capsys, text, says):
    (tmp_path / "odd.yaml").write_text(text)
    (tmp_path / "photos").mkdir()
    shutil.copy(folder[0] / "good.png", tmp_path / "photos")
    for path in folder[1].iterdir():
        if path.stem != "good":
            path.unlink()
    argv = [*flags((tmp_path / "photos", folder[1]), tmp_path / "out"), "--crops_per_photo", "8"]
    argv[argv.index("--degradation") + 1] = str(tmp_path / "odd.yaml")
    assert exit_code(argv) == (2 if says else 0)
    if says:
        assert says in (said := capsys.readouterr().err) and "odd.yaml" in said
