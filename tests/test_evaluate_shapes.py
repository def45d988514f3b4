"""realsr-r1 evaluate with pictures of another shape, of other kinds, and in subfolders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import skimage
from PIL import Image

from realsr_r1.core.images import resize_to_cover
from realsr_r1.evaluate import main

from .small import exit_code

SIZE = (320, 240)


def original(name: str = "astronaut") -> Image.Image:
    path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
    with Image.open(path) as image:
        return resize_to_cover(image.convert("RGB"), SIZE)


def evaluate(folder: Path, *more: str) -> int:
    return exit_code(main, ["--restored", str(folder / "restored"), "--gt", str(folder / "gt"), "--output",
                            str(folder / "out"), "--metrics", "psnr", "--device", "cpu", "--resize", *more])


def pair(folder: Path, restored: Image.Image, gt: Image.Image, name: str = "a.png") -> None:
    for kind, image in (("restored", restored), ("gt", gt)):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / name)


def results(folder: Path) -> dict:
    return json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))


def psnr(folder: Path) -> float:
    value = results(folder)["images"][0]["restored"]["psnr"]
    return float("inf") if value is None else value


def squeezed(image: Image.Image) -> Image.Image:
    return image.resize((512, 512), Image.Resampling.BICUBIC)


CUTS = {
    "fit: crop": (lambda image: resize_to_cover(image, (288, 224)), "middle"),
    "a square": (lambda image: resize_to_cover(image, (512, 512)), "middle"),
    "a tall part": (lambda image: resize_to_cover(image, (120, 240)), "middle"),
    "the left": (lambda image: image.crop((0, 0, 200, 240)), "left or top"),
    "the bottom": (lambda image: image.crop((0, 100, 320, 240)), "right or bottom"),
    "a part somewhere": (lambda image: image.crop((31, 17, 251, 227)), "from 31, 17 on"),
    "stretched": (squeezed, "squeezed"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_photo_that_was_cut_is_compared_on_the_region_that_both_show(cut, tmp_path):
    make, words = CUTS[cut]
    pair(tmp_path, make(original()), original())
    assert evaluate(tmp_path) == 0
    # Squeezing and back loses a little; a cut loses nothing.
    assert psnr(tmp_path) > (33 if cut == "stretched" else 40)
    assert any(words in note for note in results(tmp_path)["notes"])


def test_an_original_that_was_cut_is_compared_with_the_middle_of_the_restored(tmp_path):
    pair(tmp_path, original(), resize_to_cover(original(), (240, 240)))
    assert evaluate(tmp_path) == 0 and psnr(tmp_path) > 40


def test_the_rounding_of_a_side_is_no_other_shape(tmp_path):
    pair(tmp_path, original().resize((107, 80), Image.Resampling.BICUBIC), original())
    assert evaluate(tmp_path) == 0 and results(tmp_path)["images"][0]["region"] is None


WRONG = {
    "turned": lambda: original().transpose(Image.Transpose.ROTATE_90),
    "another photo": lambda: resize_to_cover(original("coffee"), (240, 240)),
    "mirrored and cut": lambda: resize_to_cover(original().transpose(Image.Transpose.FLIP_TOP_BOTTOM), (200, 240)),
    "noise": lambda: Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (100, 300, 3), numpy.uint8)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_picture_of_something_else_is_refused_by_name(wrong, tmp_path, capsys):
    pair(tmp_path, WRONG[wrong](), original())
    assert evaluate(tmp_path) == 2 and not (tmp_path / "out" / "metrics.json").exists()
    assert f"{tmp_path / 'restored' / 'a.png'} is " in capsys.readouterr().err


def test_the_degraded_photo_is_compared_on_the_same_region(tmp_path):
    pair(tmp_path, resize_to_cover(original(), (288, 224)), original())
    (tmp_path / "lq").mkdir()
    original().resize((160, 120)).save(tmp_path / "lq" / "a.png")
    assert evaluate(tmp_path, "--lq", str(tmp_path / "lq")) == 0
    assert 20 < results(tmp_path)["images"][0]["LQ input"]["psnr"] < 40
    original().resize((100, 120)).save(tmp_path / "lq" / "a.png")
    assert evaluate(tmp_path, "--lq", str(tmp_path / "lq")) == 2


def test_pictures_of_16_bits_are_compared_as_what_they_show(tmp_path):
    grey = numpy.asarray(original().convert("L"))
    pair(tmp_path, Image.fromarray(grey.astype(numpy.uint16) * 257), Image.fromarray(grey))
    assert evaluate(tmp_path) == 0 and psnr(tmp_path) > 60
    Image.fromarray(grey.astype(numpy.float32)).save(tmp_path / "restored" / "a.tif")
    (tmp_path / "restored" / "a.png").unlink()
    assert evaluate(tmp_path) == 2  # floating point from 0 to 255 has no one meaning


def test_subfolders_are_paired_by_their_places(tmp_path, capsys):
    for place, name in (("a.png", "astronaut"), ("sub/a.png", "chelsea"), ("sub/deep/b.png", "coffee")):
        pair(tmp_path, original(name), original(name), place)
    (tmp_path / "restored" / "chains" / "a").mkdir(parents=True)
    original().save(tmp_path / "restored" / "chains" / "a" / "final.png")
    assert evaluate(tmp_path) == 0
    assert "passed over: 2 in its subfolders" in capsys.readouterr().out
    assert evaluate(tmp_path, "--recursive") == 0
    assert [image["name"] for image in results(tmp_path)["images"]] == ["a", "sub/a", "sub/deep/b"]
