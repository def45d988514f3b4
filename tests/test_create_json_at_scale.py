"""Promises of realsr-r1 create-json for large jobs: sources, resuming after a kill, shards on
several machines, near-duplicates.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import pytest
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.create_json import main
from realsr_r1.data.records import load_dataset_dict

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "degradation" / "tiny.yaml"
NAMES = ("astronaut", "chelsea", "coffee")
TEXTS = {"rough": "A thing.", "middle": "A thing on a table.", "final": "A red thing on a round table."}


@pytest.fixture
def images(photos_dir, tmp_path):
    """Three photos, two of them in a subfolder."""
    folder = tmp_path / "images"
    (folder / "more" / "cats").mkdir(parents=True)
    for name, place in zip(NAMES, ("", "more/cats", "more"), strict=True):
        shutil.copy(photos_dir / f"{name}.png", folder / place)
    return folder


@pytest.fixture
def lines(tmp_path):
    """Tags and descriptions of the photos, one JSON line each."""
    path = tmp_path / "known.jsonl"
    photos = ("astronaut.png", "more/cats/chelsea.png", "more/coffee.png")
    path.write_text("".join(json.dumps({"image": name, "tag": ["thing", Path(name).stem], **TEXTS}) + "\n"
                            for name in photos))
    return path


def flags(images, lines, output, *more):
    return ["--images", str(images), "--tags", str(lines), "--output", str(output), "--crop_px", "48",
            "--degradation", str(TINY), "--num_proc", "1", *more]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def left_out(output):
    return {item["name"]: item["reason"]
            for item in map(json.loads, (output / "left_out.jsonl").read_text().splitlines())}


# --- sources ---

def test_subfolders_and_json_lines(images, lines, tmp_path):
    assert main(flags(images, lines, tmp_path / "out", "--descriptions", str(lines), "--test_photos",
                      "chelsea")) == 0
    dataset = load_dataset_dict(tmp_path / "out")
    assert list(dataset["train"]["source"]) == ["astronaut.png", "more/coffee.png"]
    assert list(dataset["test"]["source"]) == ["more/cats/chelsea.png"]
    assert dataset["test"][0]["tag"] == ["thing", "chelsea"]
    assert dataset["test"][0]["descriptions"] == list(TEXTS.values())
    assert (tmp_path / "out" / "images/train/more/coffee/00000-hq.png").is_file()


def test_sidecars_lie_at_the_photos_place_in_their_own_folder(images, tmp_path):
    for name, place in zip(NAMES, ("", "more/cats", "more"), strict=True):
        (tmp_path / "tags" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tags" / place / f"{name}.txt").write_text(f"{name}, thing")
    assert main(flags(images, tmp_path / "tags", tmp_path / "out")) == 0
    assert load_dataset_dict(tmp_path / "out")["train"][1]["tag"] == ["chelsea", "thing"]


def test_tars_give_the_same_crops_as_folders_of_their_photos(photos_dir, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, names in enumerate((NAMES[:2], NAMES[2:])):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for name in names:
                for suffix, data in (("png", (photos_dir / f"{name}.png").read_bytes()),
                                     ("txt", f"{name}, thing".encode()),
                                     ("json", json.dumps(TEXTS).encode())):
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (tmp_path / "unpacked" / f"part-{number}").mkdir(parents=True)
        (tmp_path / "tags" / f"part-{number}").mkdir(parents=True)
        for name in names:
            shutil.copy(photos_dir / f"{name}.png", tmp_path / "unpacked" / f"part-{number}")
            (tmp_path / "tags" / f"part-{number}" / f"{name}.txt").write_text(f"{name}, thing")
    argv = flags(folder, "", tmp_path / "from_tars")
    assert main([word for word in argv if word not in ("--tags", "")]) == 0
    assert main(flags(tmp_path / "unpacked", tmp_path / "tags", tmp_path / "from_files")) == 0
    one, other = (load_dataset_dict(tmp_path / name)["train"] for name in ("from_tars", "from_files"))
    assert list(one["source"]) == list(other["source"]) == ["part-0/astronaut.png", "part-0/chelsea.png",
                                                            "part-1/coffee.png"]
    assert list(one["tag"]) == list(other["tag"]) and one[0]["descriptions"] == list(TEXTS.values())
    images = [files_of(tmp_path / name / "images") for name in ("from_tars", "from_files")]
    assert images[0] == images[1] and len(images[0]) == 6


def test_a_hugging_face_dataset_is_a_source(photos_dir, tmp_path):
    rows = {"image": [str(photos_dir / f"{name}.png") for name in NAMES],
            "tags": [f"{name}, thing" for name in NAMES]}
    datasets.DatasetDict({
        "train": datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()),
    }).save_to_disk(str(tmp_path / "hf"))
    argv = ["--hf_dataset", str(tmp_path / "hf"), "--output", str(tmp_path / "out"), "--crop_px", "48",
            "--degradation", str(TINY)]
    assert main([*argv, "--num_proc", "1"]) == 0
    train = load_dataset_dict(tmp_path / "out")["train"]
    assert list(train["source"]) == ["00000000", "00000001", "00000002"] and train[1]["tag"] == ["chelsea",
                                                                                                 "thing"]
    with pytest.raises(UserError, match="no split 'validation'; --hf_split is one of train"):
        main([*argv, "--hf_split", "validation"])


# --- resuming, shards ---

def test_killed_three_times_and_started_again_the_result_is_the_same_to_the_byte(images, lines, tmp_path):
    more = ("--crops_per_photo", "36", "--skip_bad")
    (images / "broken.png").write_bytes(b"no photo")
    assert main(flags(images, lines, tmp_path / "whole", *more)) == 0
    output = tmp_path / "out"
    finished_parts = lambda: len(list(  # noqa: E731
        (tmp_path / ".out.making" / "parts").glob("0*/part.json")))
    for wanted in (1, 3, 4):
        process = subprocess.Popen([sys.executable, "-m", "realsr_r1.create_json",
                                    *flags(images, lines, output, *more)],
                                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                                   stderr=subprocess.DEVNULL)
        while finished_parts() < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not killed in time"
        assert not output.exists()
    kept = {path: path.stat().st_mtime_ns
            for path in (tmp_path / ".out.making" / "parts").glob("0*/part.json")}
    assert len(kept) >= 4
    assert main(flags(images, lines, output, *more)) == 0
    assert files_of(output) == files_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_shards_of_several_machines_join_to_the_same_bytes(images, lines, tmp_path):
    more = ("--crops_per_photo", "40", "--test_photos", "coffee", "--test_crops_per_photo", "3")
    main(flags(images, lines, tmp_path / "whole", *more))
    output = tmp_path / "out"
    for index in (1, 3):
        assert main(flags(images, lines, output, *more, "--shard", f"{index}/3")) == 0
    with pytest.raises(UserError, match="parts are missing in .*out.shards, which holds the shards 1-of-3, "
                                        "3-of-3"):
        main(["--merge", "--output", str(output)])
    assert main(flags(images, lines, output, *more, "--shard", "2/3")) == 0
    assert main(["--merge", "--output", str(output)]) == 0
    assert files_of(output) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("file", ["images/train/astronaut/00000-hq.png", "parts/00000/train.arrow",
                                  "parts/00000/train.jsonl"])
@pytest.mark.parametrize("change", ["cut", "gone", "zeros"])
def test_a_shard_that_was_not_copied_whole_is_named(images, lines, tmp_path, file, change):
    main(flags(images, lines, tmp_path / "out", "--shard", "1/1"))
    shard = tmp_path / "out.shards" / "1-of-1"
    if change == "zeros":
        (shard / file).write_bytes(bytes((shard / file).stat().st_size))
    elif change == "cut":
        os.truncate(shard / file, (shard / file).stat().st_size // 2)
    else:
        (shard / file).unlink()
    with pytest.raises(UserError, match=f"1-of-1/{file} (has|holds|is missing).*copy the shard 1-of-1 again"):
        main(["--merge", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["create_json.json", "parts/00000/part.json"])
@pytest.mark.parametrize("text", ["[]", "{}", ""])
def test_a_shards_notes_that_are_damaged_are_named(images, lines, tmp_path, file, text):
    main(flags(images, lines, tmp_path / "out", "--shard", "1/1"))
    (tmp_path / "out.shards" / "1-of-1" / file).write_text(text)
    with pytest.raises(UserError, match=f"1-of-1/{file} (is not|has no key|holds)"):
        main(["--merge", "--output", str(tmp_path / "out")])


def test_a_note_that_a_crash_left_empty_is_no_obstacle(images, lines, tmp_path):
    (tmp_path / ".out.making").mkdir()
    (tmp_path / ".out.making" / "made_from.json").write_text("")
    assert main(flags(images, lines, tmp_path / "out")) == 0


def test_a_shard_counts_its_bad_items_and_merging_lists_them(images, lines, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"no photo")
    assert main(flags(images, lines, tmp_path / "out", "--shard", "1/1")) == 0
    assert "1 bad item(s), which --merge will list" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 bad item.*broken.png"):
        main(["--merge", "--output", str(tmp_path / "out")])
    assert "broken.png" in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b"])
def test_a_wrong_shard_is_named(images, lines, tmp_path, shard):
    with pytest.raises(UserError, match="--shard"):
        main(flags(images, lines, tmp_path / "out", "--shard", shard))


def test_two_runs_in_one_folder_do_not_mix(images, lines, tmp_path):
    import fcntl

    with open(tmp_path / ".out.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing out"):
            main(flags(images, lines, tmp_path / "out"))


# --- evaluation photos ---

def test_near_duplicates_of_evaluation_photos_are_kept_out_of_training(images, lines, tmp_path, capsys):
    with Image.open(images / "more" / "coffee.png") as photo:
        photo.resize((420, 280)).save(images / "again.jpg", quality=40)
    with Image.open(images / "astronaut.png") as photo:
        (tmp_path / "benchmark").mkdir()
        photo.point(lambda value: min(255, value
                                      + 12)).resize((300, 300)).save(tmp_path / "benchmark" / "portrait.png")
    with open(lines, "a") as file:
        file.write('{"image": "again.jpg", "tag": "cup"}\n')
    assert main(flags(images, lines, tmp_path / "out", "--test_photos", "coffee", "--evaluation_photos",
                      str(tmp_path / "benchmark"))) == 0
    dataset = load_dataset_dict(tmp_path / "out")
    assert list(dataset["train"]["source"]) == ["more/cats/chelsea.png"]
    assert list(dataset["test"]["source"]) == ["more/coffee.png"]
    assert left_out(tmp_path / "out") == {"again.jpg": "a near-duplicate of the evaluation photo "
                                                       "more/coffee.png",
                                          "astronaut.png": "a near-duplicate of the evaluation photo "
                                                           "portrait.png"}
    assert "2 photos left out" in capsys.readouterr().out
    assert "near-duplicates of photos to evaluate on" in (tmp_path / "out" / "dataset.html").read_text()


def test_a_copy_of_a_photo_with_test_crops_is_not_trained_on(images, lines, tmp_path):
    with Image.open(images / "more" / "coffee.png") as photo:
        photo.resize((420, 280)).save(images / "more" / "z.jpg", quality=40)
    with open(lines, "a") as file:
        file.write('{"image": "more/z.jpg", "tag": "cup"}\n')
    assert main(flags(images, lines, tmp_path / "with", "--test_crops_per_photo", "1")) == 0
    assert list(left_out(tmp_path / "with")) == ["more/z.jpg"]
    assert "more/z.jpg" not in load_dataset_dict(tmp_path / "with")["train"]["source"]
    assert main(flags(images, lines, tmp_path / "without")) == 0
    assert "more/z.jpg" in load_dataset_dict(tmp_path / "without")["train"]["source"]


@pytest.mark.parametrize("spoil", ["no tags", "too small", "broken"])
def test_a_photo_that_is_not_used_displaces_none(images, lines, tmp_path, spoil):
    """`a.jpg`, a copy of coffee.png that comes before it."""
    with Image.open(images / "more" / "coffee.png") as photo:
        photo.convert("RGB").resize((60, 40) if spoil == "too small" else photo.size).save(images / "a.jpg",
                                                                                           quality=60)
    if spoil == "broken":
        os.truncate(images / "a.jpg", (images / "a.jpg").stat().st_size * 9 // 10)
    if spoil != "no tags":
        with open(lines, "a") as file:
            file.write('{"image": "a.jpg", "tag": "cup"}\n')
    assert main(flags(images, lines, tmp_path / "out", "--test_crops_per_photo", "1", "--skip_bad")) == 0
    assert [json.loads(line)["name"] for line in (tmp_path / "out" / "rejected.jsonl").open()] == ["a.jpg"]
    assert "more/coffee.png" in load_dataset_dict(tmp_path / "out")["test_crops"]["source"]


def test_of_a_photo_and_its_thumbnail_the_photo_is_used(images, lines, tmp_path):
    with Image.open(images / "more" / "coffee.png") as photo:
        photo.resize((300, 200)).save(images / "a.png")
    with open(lines, "a") as file:
        file.write('{"image": "a.png", "tag": "cup"}\n')
    assert main(flags(images, lines, tmp_path / "out", "--test_crops_per_photo", "1")) == 0
    assert list(left_out(tmp_path / "out")) == ["a.png"]


def test_the_two_views_of_a_stereo_pair_are_one_photo(images, lines, photos_dir, tmp_path):
    for view in ("left", "right"):
        shutil.copy(photos_dir / "motorcycle_left.png", images / f"motorcycle_{view}.png")
    with open(lines, "a") as file:
        file.writelines(f'{{"image": "motorcycle_{view}.png", "tag": "motorcycle"}}\n'
                        for view in ("left", "right"))
    assert main(flags(images, lines, tmp_path / "out", "--test_photos", "motorcycle_right")) == 0
    dataset = load_dataset_dict(tmp_path / "out")
    assert list(dataset["test"]["source"]) == ["motorcycle_left.png"] and len(dataset["train"]) == 3
    assert "stereo pair" in left_out(tmp_path / "out")["motorcycle_right.png"]


# --- what is written ---

def test_every_drawn_value_is_stored_beside_the_records(images, lines, tmp_path):
    main(flags(images, lines, tmp_path / "out"))
    records = json.loads((tmp_path / "out" / "train.json").read_text())
    drawn = [json.loads(line)
             for line in (tmp_path / "out" / "train.parameters.jsonl").read_text().splitlines()]
    assert [one["image_path"] for one in drawn] == [record["image_path"] for record in records]
    assert [one["second_resize"]["word"] for one in drawn] == [record["degradation"][4] for record in records]


def test_the_page_shows_counts_labels_tags_and_pairs(images, lines, tmp_path):
    main(flags(images, lines, tmp_path / "out", "--crops_per_photo", "3"))
    page = (tmp_path / "out" / "dataset.html").read_text()
    assert page.count("data:image/png") == 2 * 9
    for text in ("records of train, from 3 photos", "second resize", ">thing<", ">chelsea<",
                 "more/cats/chelsea.png",
                 "Rejected: none"):
        assert text in page
