"""Promises of cropping: splits share no pixel, crops stay in their region, and read nothing beside
it.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.data.degradation.config import DegradationConfig
from realsr_r1.data.degradation.crops import CropPlan, cut, degraded_pair, draw_box, make_crops, split_regions
from realsr_r1.data.degradation.degrade import degrade

SIZES = [(451, 300), (300, 451), (512, 512), (200, 100), (1920, 1080)]


def plan(**changes):
    settings = dict(crop_px=48, scales=(0.1, 1.0), reserve=True, seed=0,
                    degradation=DegradationConfig(scale=1))
    return CropPlan(**{**settings, **changes})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scales", [(0.1, 1.0), None])
def test_train_and_test_crops_share_no_pixel(size, scales):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        taken = {split: np.zeros(size[::-1], dtype=bool) for split in ("train", "test_crops")}
        regions = split_regions(size, name, plan(scales=scales))
        for split, index in itertools.product(taken, range(60)):
            key = f"{name}/{split}/{index}"
            left, top, right, bottom = draw_box(regions[split], min(size), key, plan(scales=scales))
            assert 0 <= left and right <= size[0] and 0 <= top and bottom <= size[1]
            assert right - left == bottom - top >= 48
            taken[split][top:bottom, left:right] = True
        assert taken["train"].any() and taken["test_crops"].any()
        assert not (taken["train"] & taken["test_crops"]).any()


def test_reserved_strip_is_28_percent_at_either_end():
    starts = set()
    for name in "abcdefgh":
        left, top, right, bottom = split_regions((1000, 600), name, plan())["test_crops"]
        assert (right - left, top, bottom) == (280, 0, 600)
        starts.add(left)
    assert starts == {0, 720}


def test_a_crop_reads_no_pixel_beside_its_box():
    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as image:
        photo = np.array(image.convert("RGB"))
    box = (101, 37, 301, 237)
    other = np.zeros_like(photo)
    other[37:237, 101:301] = photo[37:237, 101:301]
    crops = [np.asarray(cut(Image.fromarray(pixels), box, 48)) for pixels in (photo, other)]
    assert crops[0].shape == (48, 48, 3)
    assert np.array_equal(*crops)


def test_sides_cover_the_scales_evenly_by_octave():
    wide = plan(scales=(0.1, 0.8), reserve=False)
    region = split_regions((4000, 2000), "a", wide)["train"]
    boxes = [draw_box(region, 2000, str(i), wide) for i in range(900)]
    octaves = np.floor(np.log2([(box[2] - box[0]) / 200 for box in boxes])).astype(int)
    assert all(abs(np.mean(octaves == octave) - 1 / 3) < 0.06 for octave in (0, 1, 2))


@pytest.mark.parametrize("size, crop_px", [((100, 40), 48), ((90, 60), 48)])
def test_a_photo_without_room_is_refused_with_its_size(size, crop_px):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} px has no room"):
        split_regions(size, "a", plan(crop_px=crop_px))


def test_without_test_crops_the_whole_photo_is_trained_on():
    assert split_regions((90, 60), "a", plan(reserve=False))["train"] == (0, 0, 90, 60)


def chelsea() -> Image.Image:
    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as image:
        return image.convert("RGB")


MARGIN = DegradationConfig(scale=1, margin=16)


def test_with_a_margin_a_crop_is_a_piece_of_a_larger_degraded_picture():
    """At native size, the LQ crop is what degrading the crop with its surroundings gives there."""
    photo, box = chelsea(), (100, 60, 148, 108)
    for number in range(6):
        key = f"cat/train/{number}"
        pair = degraded_pair(photo, (0, 0, *photo.size), box, key, plan(degradation=MARGIN))
        assert np.array_equal(np.asarray(pair.hq), np.asarray(photo.crop(box)))
        pieces = []
        for left, top in itertools.product(range(9, 17), repeat=2):
            around = photo.crop((box[0] - left, box[1] - top, box[2] + 16, box[3] + 16))
            pieces.append(degrade(around, 0, key, MARGIN).image.crop((left, top, left + 48, top + 48)))
        assert any(np.array_equal(np.asarray(pair.lq), np.asarray(piece)) for piece in pieces)


def test_the_margin_reads_no_pixel_of_another_split():
    photo = chelsea()
    settings = plan(degradation=MARGIN)
    for split, region in split_regions(photo.size, "cat", settings).items():
        if split == "test":
            continue
        left, top, right, bottom = region
        other = Image.new("RGB", photo.size)
        other.paste(photo.crop(region), (left, top))
        for here, there in zip(make_crops(photo, "cat", split, range(12), settings),
                               make_crops(other, "cat", split, range(12), settings), strict=True):
            assert here.lq.size == here.hq.size == (48, 48)
            assert np.array_equal(np.asarray(here.lq), np.asarray(there.lq))
            assert np.array_equal(np.asarray(here.hq), np.asarray(there.hq))


def test_shrunk_crops_are_degraded_at_a_larger_size():
    """Shrinking hides most of a degradation, so these crops are nearer to their originals."""
    photo = chelsea()
    errors = {}
    for probability in (0.0, 1.0):
        settings = plan(scales=(0.64, 0.64), degradation=DegradationConfig(
            scale=1, shrunk_probability=probability))
        crops = list(make_crops(photo, "cat", "train", range(12), settings))
        assert all(crop.lq.size == crop.hq.size == (48, 48) for crop in crops)
        errors[probability] = np.mean([np.square(np.asarray(crop.lq, float) - np.asarray(crop.hq)).mean()
                                       for crop in crops])
    assert errors[1.0] < 0.5 * errors[0.0]
