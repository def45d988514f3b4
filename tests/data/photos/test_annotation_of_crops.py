"""Tags, captions and labels of each crop: of what is seen in it, and asked for once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from realsr_r1.core.errors import UserError
from realsr_r1.create_json import main
from realsr_r1.data.records import load_dataset_dict

ROOT = Path(__file__).parents[3]
# They say of what they are shown how bright it is, and whether it is sharp.
MODELS = '''
import os
from pathlib import Path
from PIL import ImageFilter, ImageStat

HERE = Path(__file__).parent

def brightness(image):
    return round(ImageStat.Stat(image.convert("L")).mean[0], 2)

def edges(image):
    return ImageStat.Stat(image.convert("L").filter(ImageFilter.FIND_EDGES)).mean[0]

def tagger(settings):
    def model(images):
        with open(HERE / "calls.txt", "a") as log:
            log.writelines(f"{image.width}\\n" for image in images)
        if (HERE / "kill").exists() and len((HERE / "calls.txt").read_text().split()) > 12:
            os.kill(int((HERE / "kill").read_text()), 9)
        return [[f"brightness {brightness(image)}", f"edges {edges(image):.2f}"] for image in images]
    return model

def captioner(settings):
    return lambda images: [{key: f"{key}, {brightness(image)}." for key in ("rough", "middle", "final")}
                           for image in images]

def labeller(settings):
    word = settings.get("word", "heavy")
    others = ["keep", "light noise", "medium compression", "Downsample"]
    return lambda images: [[f"{word} blur" if brightness(image) > 100 else "light blur", *others]
                           for image in images]

def mute(settings):
    return lambda images: [["light blur"]] * len(images)

def dark_only(settings):
    return lambda images: [[] if brightness(image) > 100 else ["dark"] for image in images]
'''


@pytest.fixture
def workplace(photos_dir, tmp_path, monkeypatch):
    """A folder with three photos, the module `crop_models`, and settings for it."""
    (tmp_path / "images").mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        with Image.open(photos_dir / f"{name}.png") as photo:
            photo.resize((200, 160)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "crop_models.py").write_text(textwrap.dedent(MODELS))
    (tmp_path / "asking.yaml").write_text("batch_size: 4\nretries: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def flags(workplace, *more, crops="4", degradation=True):
    own = ["--degradation", str(ROOT / "configs" / "degradation" / "tiny.yaml")] if degradation else []
    return ["--images", str(workplace / "images"), "--output", str(workplace / "out"), "--crop_px", "48",
            "--crops_per_photo", crops, "--num_proc", "1", "--annotation", str(workplace / "asking.yaml"),
            *own, *more]


def brightness(image) -> float:
    return round(ImageStat.Stat(image.convert("L")).mean[0], 2)


@pytest.mark.parametrize("side, column", [([], "image"), (["--annotate_side", "hq"], "hq")])
def test_each_crop_has_the_tags_and_captions_of_what_is_seen_in_it(side, column, workplace):
    assert main(flags(workplace, "--tagger", "crop_models:tagger", "--captioner", "crop_models:captioner",
                      "--annotate", "crop", *side)) == 0
    train = load_dataset_dict(workplace / "out")["train"]
    assert len(train) == 12
    for record in train:
        seen = brightness(record[column])
        assert record["tag"][0] == f"brightness {seen}" and record["descriptions"][2] == f"final, {seen}."
    of_one = [tuple(record["tag"]) for record in train if record["source"] == "coffee.png"]
    assert len(set(of_one)) == 4
    assert not list(workplace.glob("**/drawn")) and (workplace / "out" / "dataset.html").is_file()


def test_the_same_crops_come_out_whatever_is_asked_about_them(workplace):
    main(flags(workplace, "--tagger", "crop_models:tagger"))
    whole = load_dataset_dict(workplace / "out")["train"]
    assert len({tuple(record["tag"]) for record in whole}) == 3  # one set of tags a photo
    main(flags(workplace, "--tagger", "crop_models:tagger", "--annotate", "crop", "--overwrite"))
    crops = load_dataset_dict(workplace / "out")["train"]
    for one, other in zip(whole, crops, strict=True):
        assert {key: one[key] for key in ("degradation", "crop", "source", "problem")} == {
            key: other[key] for key in ("degradation", "crop", "source", "problem")}
        assert one["image"].tobytes() == other["image"].tobytes()
        assert one["hq"].tobytes() == other["hq"].tobytes()
    drawn = (workplace / "out" / "train.parameters.jsonl").read_text().splitlines()
    assert len(drawn) == 12 and all("image_path" in json.loads(line) for line in drawn)


def test_a_killed_run_goes_on_and_asks_for_no_crop_twice(workplace):
    argv = flags(workplace, "--tagger", "crop_models:tagger", "--annotate", "crop", crops="8")
    code = (f"import os; from realsr_r1.create_json import main; "
            f"open({str(workplace / 'kill')!r}, 'w').write(str(os.getpid())); main({argv!r})")
    path = os.pathsep.join([str(workplace), *sys.path])
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=120,
                            cwd=workplace, capture_output=True)
    assert killed.returncode == -9 and not (workplace / "out").exists()
    (workplace / "kill").unlink()
    before = len((workplace / "calls.txt").read_text().split())
    assert main(argv) == 0
    after = len((workplace / "calls.txt").read_text().split())
    assert 12 < before < 24 and after - before < 24  # what was answered is not asked for again
    train = load_dataset_dict(workplace / "out")["train"]
    assert [record["tag"][0] for record in train] == [f"brightness {brightness(record['image'])}"
                                                      for record in train]


def test_crops_of_which_a_model_says_nothing_are_rejected_one_by_one(workplace):
    argv = flags(workplace, "--tagger", "crop_models:dark_only", "--annotate", "crop", "--skip_bad")
    assert main(argv) == 0
    train = load_dataset_dict(workplace / "out")["train"]
    rejected = [json.loads(line) for line in (workplace / "out" / "rejected.jsonl").read_text().splitlines()]
    assert 0 < len(train) < 12 and len(train) + len(rejected) == 12
    assert all(brightness(record["image"]) <= 100 for record in train)
    for item in rejected:
        assert item["name"].endswith("-lq.png")
        assert "tagger crop_models:dark_only gave no tags" in item["reason"]
        assert not (workplace / "out" / item["name"]).exists()


def test_photos_without_originals_get_their_labels_from_an_estimator(workplace):
    argv = flags(workplace, "--tagger", "crop_models:tagger", "--degradation_labeller",
                 "crop_models:labeller", degradation=False)
    assert main(argv) == 0
    train = load_dataset_dict(workplace / "out")["train"]
    assert set(train.column_names) == {"image", "problem", "tag", "degradation", "source", "crop"}
    for record in train:
        blur = "heavy blur" if brightness(record["image"]) > 100 else "light blur"
        assert record["degradation"] == [blur, "keep", "light noise", "medium compression", "downsample"]
    assert {record["degradation"][0] for record in train} == {"heavy blur", "light blur"}
    record = train[0]  # it is a piece of the photo as it is
    with Image.open(workplace / "images" / record["source"]) as photo:
        piece = photo.convert("RGB").crop(record["crop"])
    assert record["image"].size == (48, 48) and abs(brightness(piece) - brightness(record["image"])) < 2
    listed = json.loads((workplace / "out" / "train.json").read_text())
    assert "hq_path" not in listed[0] and len(listed[0]["degradation"]) == 5


@pytest.mark.parametrize("labeller, settings, words", [
    ("crop_models:mute", "{}", "degradation labeller crop_models:mute gave no labels .*: .*no 5 labels"),
    ("crop_models:labeller", "{word: awful}", "'awful blur'; it must be one of light blur"),
    ("crop_models:none", "{}", "crop_models:none can't be used .*give package.module:factory$"),
    ("some/model", "{}", "'some/model' is no package.module:factory")])
def test_an_estimator_without_labels_is_refused_before_the_long_work(labeller, settings, words, workplace):
    (workplace / "asking.yaml").write_text(f"degradation_labeller: {settings}\n")
    (workplace / "images" / "astronaut.png").write_bytes(b"no photo")  # which isn't its fault
    (workplace / "images" / "chelsea.png").unlink()
    with pytest.raises(UserError, match=words):
        main(flags(workplace, "--tagger", "crop_models:tagger", "--degradation_labeller", labeller,
                   degradation=False))
    assert not (workplace / "calls.txt").exists() and not (workplace / "out").exists()


@pytest.mark.parametrize("more, words", [
    (["--annotate", "crop", "--tags", "{0}/images"], "--annotate crop says what --tagger and --captioner"),
    (["--tagger", "a:b", "--annotate_side", "lq"], "give --annotate crop, too"),
    (["--tagger", "a:b", "--degradation_labeller", "a:b"], "--degradation has no effect"),
])
def test_flags_without_effect_are_refused(more, words, workplace):
    with pytest.raises(UserError, match=words):
        main(flags(workplace, *(word.format(workplace) for word in more)))
