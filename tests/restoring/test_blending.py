"""Tiles that fit together give the picture they were cut from; tiles that differ give no edge."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from realsr_r1.restoring.blending import Blender
from realsr_r1.restoring.sizes import Tiling, spread

from ..small import photo


def tiling(canvas: tuple[int, int], tile: tuple[int, int], overlap: int) -> Tiling:
    return Tiling(canvas, tile, *(spread(length, side, overlap) for length, side in
                                  zip(canvas, tile, strict=True)), overlap)


@pytest.mark.parametrize(("canvas", "tile", "overlap"), [
    ((200, 170), (48, 48), 6), ((48, 300), (48, 48), 0), ((100, 70), (48, 32), 31), ((48, 48), (48, 48), 6)])
def test_the_tiles_of_a_picture_give_the_picture(canvas, tile, overlap):
    picture, places = photo("coffee", 300).crop((0, 0, *canvas)), tiling(canvas, tile, overlap)
    blender = Blender(places)
    for box in places.boxes():
        blender.add(picture.crop(box))
    assert blender.picture().tobytes() == picture.tobytes()


@pytest.mark.parametrize("overlap", [0, 6])
def test_tiles_of_another_scale_cover_a_picture_of_that_scale(overlap):
    places = tiling((201, 170), (48, 48), overlap).at_share((16, 16))
    assert places.canvas == (67, 57)
    blender = Blender(places)
    for _ in places.boxes():
        blender.add(Image.new("RGB", (16, 16), (10, 200, 90)))
    assert blender.picture().getcolors() == [(67 * 57, (10, 200, 90))]


def test_neighbours_of_different_brightness_pass_into_each_other_over_the_overlap():
    places = tiling((88, 48), (48, 48), 8)
    blender = Blender(places)
    for value in (100, 160):
        blender.add(Image.new("RGB", (48, 48), (value,) * 3))
    line = numpy.asarray(blender.picture())[20, :, 0].astype(int)
    assert set(line[:40]) == {100} and set(line[48:]) == {160}
    assert (numpy.diff(line[39:49]) > 0).all() and numpy.diff(line).max() <= 12


def test_a_tile_that_was_written_in_another_size_is_brought_to_its_place():
    places = tiling((88, 48), (48, 48), 8)
    blender = Blender(places)
    for _ in range(2):
        blender.add(Image.new("RGB", (32, 32), (7, 8, 9)))
    assert blender.picture().getcolors() == [(88 * 48, (7, 8, 9))]
