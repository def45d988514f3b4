"""Promises of realsr-r1 create-json: what a run writes, and what it says about bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from realsr_r1.core.errors import UserError, run
from realsr_r1.create_json import main
from realsr_r1.data.records import load_dataset_dict

PHOTOS = Path(skimage.__file__).parent / "data"
TINY = Path(__file__).parents[1] / "configs" / "degradation" / "tiny.yaml"


@pytest.fixture
def photos(tmp_path):
    """Three photos with tags and descriptions: arguments as a dictionary of folders."""
    folders = {name: tmp_path / name for name in ("images", "tags", "descriptions")}
    for folder in folders.values():
        folder.mkdir()
    for name, tags in (("chelsea.png", "cat, fur,"), ("coffee.png", "cup,spoon, coffee"),
                       ("rocket.jpg", "rocket")):
        shutil.copy(PHOTOS / name, folders["images"])
        stem = Path(name).stem
        (folders["tags"] / f"{stem}.txt").write_text(tags + "\n")
        texts = {key: f"{key} of {stem}" for key in ("rough", "middle", "final")}
        (folders["descriptions"] / f"{stem}.json").write_text(json.dumps(texts))
    return folders


def flags(photos, output, *more):
    return ["--images", str(photos["images"]), "--tags", str(photos["tags"]), "--output", str(output),
            "--crop_px", "48", "--degradation", str(TINY), "--num_proc", "1", *more]


def exit_code(argv):
    with pytest.raises(SystemExit) as stopped:
        run(main, argv)
    return stopped.value.code


def error_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("realsr-r1: error:")]
    assert len(lines) == 1
    return lines[0]


def reasons(output, file="rejected.jsonl"):
    """What the file lists, as `name: reason`."""
    items = [json.loads(line) for line in (output / file).read_text().splitlines()]
    return [f"{item['name']}: {item['reason']}" if item["name"] not in item["reason"] else item["reason"]
            for item in items]


def files_of(folder):
    """Every file below the folder: its path -> its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def test_all_splits_and_columns_are_written(photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert exit_code(flags(photos, output, "--descriptions", str(photos["descriptions"]), "--crops_per_photo",
                           "4",
                           "--test_crops_per_photo", "2", "--test_photos", "rocket")) == 0
    dataset = load_dataset_dict(output)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 8, "test_crops": 4, "test": 2}
    row = dataset["train"][0]
    assert set(row) == {"image", "problem", "tag", "degradation", "hq", "descriptions", "source", "crop"}
    assert row["image"].size == row["hq"].size == (48, 48)
    assert row["tag"] == ["cat", "fur"]
    assert row["descriptions"] == ["rough of chelsea", "middle of chelsea", "final of chelsea"]
    assert len(row["degradation"]) == 5
    assert set(dataset["test"]["source"]) == {"rocket.jpg"} and "rocket.jpg" not in dataset["train"]["source"]
    assert "train 8, test_crops 4, test 2\n  blur: light" in capsys.readouterr().out
    assert [item.name for item in tmp_path.iterdir() if "partial" in item.name] == []


def test_json_has_the_seeds_format_and_names_files_beside_it(photos, tmp_path):
    output = tmp_path / "out"
    main(flags(photos, output))
    records = json.loads((output / "train.json").read_text())
    dataset = load_dataset_dict(output)["train"]
    assert {"image_path", "problem", "tag"} <= set(records[0])
    for record, row in zip(records, dataset, strict=True):
        assert np.array_equal(np.asarray(Image.open(output / record["image_path"])), np.asarray(row["image"]))
        assert np.array_equal(np.asarray(Image.open(output / record["hq_path"])), np.asarray(row["hq"]))
        assert (record["problem"], record["tag"]) == (row["problem"], row["tag"])


def test_one_crop_is_the_largest_square_in_the_middle(photos, tmp_path):
    main(flags(photos, tmp_path / "out"))
    crops = {record["source"]: record["crop"]
             for record in json.loads((tmp_path / "out/train.json").read_text())}
    assert crops["chelsea.png"] == [75, 0, 375, 300]  # 451 x 300


def test_scale_4_gives_a_quarter_of_the_size(photos, tmp_path):
    argv = flags(photos, tmp_path / "out", "--degradation", str(TINY.with_name("real_esrgan.yaml")))
    main(argv)
    row = load_dataset_dict(tmp_path / "out")["train"][0]
    assert (row["image"].size, row["hq"].size) == ((12, 12), (48, 48))


def test_result_does_not_depend_on_the_number_of_processes(photos, tmp_path):
    contents = []
    for processes in ("1", "2", "5"):
        output = tmp_path / processes
        assert main([*flags(photos, output, "--crops_per_photo", "12", "--test_crops_per_photo", "5"),
                     "--num_proc", processes]) == 0
        contents.append(files_of(output))
    assert sum(name.endswith(".png") for name in contents[0]) == 3 * 17 * 2
    assert contents[0] == contents[1] == contents[2]


def test_another_seed_gives_other_crops_and_degradations(photos, tmp_path):
    boxes = []
    for seed in ("0", "1"):
        main(flags(photos, tmp_path / seed, "--crops_per_photo", "2", "--seed", seed))
        boxes.append([record["crop"] for record in json.loads((tmp_path / seed / "train.json").read_text())])
    assert boxes[0] != boxes[1]


def test_tags_and_descriptions_beside_the_photos_are_found(photos, tmp_path):
    main(flags(photos, tmp_path / "given", "--descriptions", str(photos["descriptions"])))
    for kind in ("tags", "descriptions"):
        for file in photos[kind].iterdir():
            shutil.copy(file, photos["images"])
    (photos["images"] / "LICENSE.txt").write_text("of whom these are")
    main(["--images", str(photos["images"]), "--output", str(tmp_path / "beside"), "--crop_px", "48",
          "--degradation", str(TINY), "--num_proc", "1"])
    for split, records in load_dataset_dict(tmp_path / "given").items():
        found = load_dataset_dict(tmp_path / "beside")[split]
        assert list(found["tag"]) == list(records["tag"])
        assert list(found["descriptions"]) == list(records["descriptions"])


def test_test_photos_may_be_named_in_a_file(photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("chelsea.png\ncoffee\n")
    main(flags(photos, tmp_path / "out", "--test_photos", f"@{names}"))
    assert sorted(load_dataset_dict(tmp_path / "out")["test"]["source"]) == ["chelsea.png", "coffee.png"]


def test_second_run_does_nothing_and_another_dataset_is_replaced_only_if_asked(photos, tmp_path, capsys):
    output = tmp_path / "out"
    main(flags(photos, output))
    written = (output / "train.json").stat().st_mtime_ns
    main(flags(photos, output))
    assert "up to date" in capsys.readouterr().out
    assert (output / "train.json").stat().st_mtime_ns == written
    (photos["tags"] / "rocket.txt").write_text("rocket, tower, sky\n")
    for other in (flags(photos, output), flags(photos, output, "--seed", "7")):
        assert exit_code(other) == 2
        assert "made from other arguments or files; give another --output, or --overwrite" in error_line(capsys)
        assert (output / "train.json").stat().st_mtime_ns == written
    main(flags(photos, output, "--overwrite"))
    assert (output / "train.json").stat().st_mtime_ns != written
    assert ["rocket", "tower", "sky"] in list(load_dataset_dict(output)["train"]["tag"])


@pytest.mark.parametrize("missing", ["images", "tags", "descriptions"])
def test_missing_folder_is_named(photos, tmp_path, capsys, missing):
    photos[missing] = tmp_path / "nowhere"
    argv = flags(photos, tmp_path / "out", "--descriptions", str(photos["descriptions"]))
    assert exit_code(argv) == 2
    assert f"nowhere (given by --{missing})" in error_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("empty", ["images", "tags"])
def test_empty_folder_is_named(photos, tmp_path, capsys, empty):
    photos[empty] = tmp_path / "void"
    photos[empty].mkdir()
    assert exit_code(flags(photos, tmp_path / "out")) == 2
    line = error_line(capsys)
    assert "void" in line and "empty" in line
    assert sorted(item.name for item in tmp_path.iterdir()) == ["descriptions", "images", "tags", "void"]


def break_zero(photos):
    (photos["images"] / "coffee.png").write_bytes(b"")
    return "coffee.png is empty (0 bytes)"


def break_corrupt(photos):
    path = photos["images"] / "coffee.png"
    path.write_bytes(path.read_bytes()[:5000])
    return "coffee.png can't be read as an image"


def break_no_tags(photos):
    (photos["tags"] / "coffee.txt").unlink()
    return "coffee.png: no tag file"


def break_no_image(photos):
    (photos["images"] / "coffee.png").unlink()
    return "coffee.txt has no image"


def break_description(photos):
    (photos["descriptions"] / "coffee.json").write_text('{"rough": "a cup", "middle": "a cup"}')
    return "coffee.json has no text under the key 'final'"


def break_no_description(photos):
    (photos["descriptions"] / "coffee.json").unlink()
    return "coffee.png: no description file"


def break_small(photos):
    Image.open(photos["images"] / "coffee.png").resize((100, 40)).save(photos["images"] / "coffee.png")
    return "coffee.png: 100x40 px has no room for a crop of 48 px"


def break_twin(photos):
    Image.open(photos["images"] / "coffee.png").save(photos["images"] / "coffee.bmp")
    return "coffee.png: coffee.bmp has the same name"


BREAKS = [break_zero, break_corrupt, break_no_tags, break_no_image, break_description, break_no_description,
          break_small, break_twin]


@pytest.mark.parametrize("damage", BREAKS)
def test_good_items_are_finished_and_bad_ones_listed(photos, tmp_path, capsys, damage):
    expected = damage(photos)
    output = tmp_path / "out"
    argv = flags(photos, output, "--descriptions", str(photos["descriptions"]))
    for _ in range(2):  # the rerun does nothing, and says the same
        assert exit_code(argv) == 2
        line = error_line(capsys)
        assert expected in line and "rejected.jsonl" in line
    assert any(expected in reason for reason in reasons(output))
    assert {"chelsea.png", "rocket.jpg"} <= set(load_dataset_dict(output)["train"]["source"])
    assert exit_code([*argv, "--skip_bad"]) == 0


def test_when_every_item_is_bad_they_are_listed_and_nothing_else_is_written(photos, tmp_path, capsys):
    paths = list(photos["images"].iterdir())
    for path in paths:
        path.write_bytes(b"")
    for _ in range(2):  # the second time from what the first one found
        assert exit_code(flags(photos, tmp_path / "out", "--skip_bad")) == 2
        assert (f"no good item among {len(paths)}" in (said := error_line(capsys))
                and "out/rejected.jsonl" in said)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["create_json.json",
                                                                          "rejected.jsonl"]
    assert {json.loads(line)["name"]
            for line in (tmp_path / "out/rejected.jsonl").open()} == {path.name for path in paths}
    with pytest.raises(UserError, match="is not a DatasetDict"):
        load_dataset_dict(tmp_path / "out")


def test_a_dataset_is_not_lost_to_a_run_that_finds_no_good_item(photos, tmp_path, capsys):
    assert exit_code(flags(photos, tmp_path / "out")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for path in photos["tags"].iterdir():
        path.write_bytes(b"")
    capsys.readouterr()
    assert exit_code(flags(photos, tmp_path / "out", "--overwrite")) == 2
    assert "is left as it is" in error_line(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_unknown_test_photo_is_named(photos, tmp_path, capsys):
    assert exit_code(flags(photos, tmp_path / "out", "--test_photos", "chelsea,moon")) == 2
    assert "'moon'" in error_line(capsys)


def test_foreign_folder_is_not_replaced(photos, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    assert exit_code(flags(photos, tmp_path / "mine")) == 2
    assert "mine" in error_line(capsys)
    assert exit_code(flags(photos, tmp_path)) == 2  # holds the input
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


@pytest.mark.parametrize("more, expected", [
    (["--crop_scales", "2,1"], "--crop_scales"), (["--crops_per_photo", "0"], "--crops_per_photo"),
    (["--json", "x.json"], "--json"), (["--degradation", "nowhere.yaml"], "nowhere.yaml")])
def test_bad_flag_is_named(photos, tmp_path, capsys, more, expected):
    assert exit_code(flags(photos, tmp_path / "out", *more)) == 2
    assert expected in error_line(capsys)


def seed_list(photos, tmp_path, **changes):
    records = [{"image_path": f"images/{name}", "problem": "Restore it.", "tag": tag}
               for name, tag in (("chelsea.png", ["cat, fur"]), ("coffee.png", ["cup"]))]
    records[1].update(changes)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(records))
    return path, records


def test_a_list_in_the_seeds_format_becomes_a_train_split(photos, tmp_path):
    path, _ = seed_list(photos, tmp_path)
    assert main(["--json", str(path), "--output", str(tmp_path / "out"), "--num_proc", "1"]) == 0
    dataset = load_dataset_dict(tmp_path / "out")
    assert list(dataset) == ["train"] and dataset["train"].column_names == ["image", "problem", "tag"]
    assert dataset["train"][0]["image"].size == (451, 300) and dataset["train"][0]["tag"] == ["cat, fur"]


def test_our_own_list_can_be_read_back(photos, tmp_path):
    main(flags(photos, tmp_path / "first"))
    main(["--json", str(tmp_path / "first/train.json"), "--output", str(tmp_path / "second"), "--num_proc",
          "1"])
    first, second = (load_dataset_dict(tmp_path / name)["train"] for name in ("first", "second"))
    assert first.features == second.features
    assert list(first["degradation"]) == list(second["degradation"])


def test_malformed_records_of_a_list_are_listed_and_the_others_finish(photos, tmp_path, capsys):
    path, records = seed_list(photos, tmp_path)
    good, without_tag = records[0], {key: value for key, value in records[1].items() if key != "tag"}
    path.write_text(json.dumps([good, without_tag, 3, {**good, "tag": None}, {**good, "crop": [0, 0, 9, 9]},
                                good,
                                {**good, "problem": "<|image|> and <|image|>"},
                                {**good, "problem": "x" * 100_000}]))
    assert exit_code(["--json", str(path), "--output", str(tmp_path / "out"), "--num_proc", "1"]) == 2
    line = error_line(capsys)
    assert "record 1 of" in line and "list.json: it has no key 'tag'" in line
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert [item["name"] for item in listed] == [f"list.json:{number}" for number in (1, 2, 3, 4, 6, 7)]
    assert len(load_dataset_dict(tmp_path / "out")["train"]) == 2


def test_a_list_whose_images_the_output_would_replace_is_refused(photos, tmp_path, capsys):
    main(flags(photos, tmp_path / "first"))
    before = files_of(tmp_path / "first")
    shutil.copy(tmp_path / "first/train.json", tmp_path / "list.json")
    (tmp_path / "list.json").write_text((tmp_path / "list.json").read_text().replace("images/",
                                                                                     "first/images/"))
    assert exit_code(["--json", str(tmp_path / "list.json"), "--output", str(tmp_path / "first")]) == 2
    assert "lies inside --output" in error_line(capsys)
    assert files_of(tmp_path / "first") == before


def test_a_list_with_a_missing_image_finishes_the_others(photos, tmp_path, capsys):
    path, _ = seed_list(photos, tmp_path, image_path="images/gone.png")
    assert exit_code(["--json", str(path), "--output", str(tmp_path / "out"), "--num_proc", "1"]) == 2
    assert "gone.png" in error_line(capsys)
    assert len(load_dataset_dict(tmp_path / "out")["train"]) == 1


def test_a_list_that_is_not_json_is_named(tmp_path, capsys):
    (tmp_path / "list.json").write_text("[{")
    assert exit_code(["--json", str(tmp_path / "list.json"), "--output", str(tmp_path / "out")]) == 2
    assert "list.json" in error_line(capsys)


def test_it_runs_as_a_module_with_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "realsr_r1.create_json", "--images", str(tmp_path / "nowhere"),
               "--tags", str(tmp_path), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "nowhere" in done.stderr


def test_a_changed_image_of_a_list_is_made_again(photos, tmp_path, capsys):
    main(flags(photos, tmp_path / "dataset"))
    argv = ["--json", str(tmp_path / "dataset" / "train.json"), "--output", str(tmp_path / "again"),
            "--num_proc", "1"]
    for change, says in ((False, "again: "), (False, "nothing to do"), (True, "again: ")):
        if change:
            record = json.loads((tmp_path / "dataset" / "train.json").read_text())[0]
            Image.new("RGB", (48, 48)).save(tmp_path / "dataset" / record["hq_path"])
        capsys.readouterr()
        assert main([*argv, "--overwrite"] if change else argv) == 0
        assert says in capsys.readouterr().out
    assert np.asarray(load_dataset_dict(tmp_path / "again")["train"][0]["hq"]).max() == 0
