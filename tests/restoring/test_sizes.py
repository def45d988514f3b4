"""Sizes are exact, and tiles of one size cover a photo with the overlap asked for."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
from PIL import Image

from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.errors import UserError
from realsr_r1.core.images import drawn_offset, fit_image
from realsr_r1.restoring.sizes import Plan, mirrored, plan_photo, result_size, spread, tile_and_overlap

from ..small import photo

SETTINGS = ChainSettings(target_px=48, grid_unit_px=16)


def plan(size: tuple[int, int], scale: float = 1.0, tile: int = 48, overlap: int = 6,
         can_tile: bool = True) -> Plan:
    image = photo("coffee", 200).resize(size)
    return plan_photo(image, lambda picture: fit_image(picture, 48, 16), SETTINGS, scale, tile, overlap,
                      can_tile)


def test_a_result_has_the_photos_sides_times_the_scale():
    assert [result_size((41, 30), scale) for scale in (1, 2, 4, 0.5, 0.01, 1.7)] == [
        (41, 30), (82, 60), (164, 120), (20, 15), (1, 1), (70, 51)]
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="scale is"):
            result_size((41, 30), scale)


@pytest.mark.parametrize("length", [48, 49, 90, 91, 513])
@pytest.mark.parametrize("overlap", [0, 6, 47])
def test_tiles_reach_from_end_to_end_and_share_the_overlap(length, overlap):
    places = spread(length, 48, overlap)
    assert places[0] == 0 and places[-1] == length - 48
    gaps = numpy.diff(places)
    assert (gaps > 0).all() and (gaps <= 48).all()
    if len(places) > 1:
        assert gaps.mean() <= 48 - overlap + 0.5
    if len(places) > 2:  # one fewer would not do
        assert (length - 48) / (len(places) - 2) > 48 - overlap


def test_half_a_pixel_less_of_overlap_saves_a_row_of_tiles():
    assert len(spread(512, 48, 6)) == 12 and len(spread(516, 48, 6)) == 13


def test_a_photo_of_a_shape_that_fits_is_one_image():
    for size, fitted in (((48, 48), (48, 48)), ((20, 20), (48, 48)), ((60, 30), (64, 32))):
        found = plan(size)
        assert found.tiling is None and found.fitted.size == fitted and found.picture.size == size


def test_what_fitting_cuts_off_is_in_further_tiles():
    found = plan((40, 30))  # fitted to 48 x 32, cut from 48 x 36
    assert found.fitted.size == (48, 32) and found.canvas.size == (48, 36)
    boxes = list(found.tiling.boxes())
    assert boxes == [(0, 0, 48, 32), (0, 2, 48, 34), (0, 4, 48, 36)]
    assert found.canvas.crop(boxes[found.whole]).tobytes() == found.fitted.tobytes()


def test_what_a_crop_at_a_drawn_place_cuts_off_is_in_further_tiles_too():
    settings, places = dataclasses.replace(SETTINGS, fit="random_crop"), set()
    for zoom in range(12):
        image = photo("coffee", 40, zoom=1 + zoom / 9).resize((40, 30))
        found = plan_photo(image, lambda picture: fit_image(picture, 48, 16, drawn_offset), settings, 1.0, 48,
                           6, True)
        boxes = list(found.tiling.boxes())
        assert (boxes[0][1], boxes[-1][3]) == (0, 36)
        assert found.canvas.crop(boxes[found.whole]).tobytes() == found.fitted.tobytes()
        places.add(boxes[found.whole][1])
    assert len(places) > 2


@pytest.mark.parametrize("size", [(49, 48), (512, 384), (300, 40), (40, 300), (1, 5000)])
def test_a_larger_photo_is_covered_by_tiles_of_one_size(size):
    found = plan(size)
    assert found.whole is None and found.crop == found.picture.size == size
    covered = numpy.zeros(found.canvas.size[::-1], bool)
    for left, top, right, bottom in found.tiling.boxes():
        assert (right - left, bottom - top) == (48, 48) and min(left, top) >= 0
        assert right <= found.canvas.width and bottom <= found.canvas.height
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert found.canvas.crop((0, 0, *size)).tobytes() == found.picture.tobytes()


def test_the_scale_decides_whether_a_photo_is_tiled():
    assert plan((48, 48), 2).tiling is not None and plan((96, 96), 0.5).tiling is None
    assert plan((96, 96), can_tile=False).tiling is None


def test_a_picture_is_filled_up_with_its_mirror():
    narrow = Image.fromarray(numpy.arange(6, dtype=numpy.uint8).reshape(2, 3, 1).repeat(3, axis=2))
    assert numpy.asarray(mirrored(narrow, (5, 3)))[..., 0].tolist() == [
        [0, 1, 2, 2, 1], [3, 4, 5, 5, 4], [3, 4, 5, 5, 4]]


def test_tiles_and_overlaps_that_cant_be_are_refused_with_what_can_be():
    assert tile_and_overlap(None, None, SETTINGS, 8) == (48, 6)
    assert tile_and_overlap(96, 0, SETTINGS, 8) == (96, 0)
    for tile in (40, 0, -16, 144):
        with pytest.raises(UserError, match=f"--tile {tile} must be a multiple of .* 16 px, and at most 128"):
            tile_and_overlap(tile, None, SETTINGS, 8)
    for overlap in (-1, 48):
        with pytest.raises(UserError, match=f"--overlap {overlap} must be"):
            tile_and_overlap(48, overlap, SETTINGS, 8)
