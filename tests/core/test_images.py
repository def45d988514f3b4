"""Pictures are read as RGB or named with the reason, keep their pixels on the way through tensors,
and fit the grid.
"""

from __future__ import annotations

import os
import shutil

import numpy
import pytest
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import (
    fit_image,
    fitted_size,
    list_images,
    listed_images,
    load_image,
    resize_to_cover,
    to_pil,
    to_pixels,
    to_rgb,
    with_colors_of,
)


@pytest.mark.parametrize("size, expected", [
    ((600, 400), (608, 416)),  # as Lumina-mGPT's code has them
    ((640, 480), (576, 448)),
    ((512, 512), (512, 512)),
    ((4000, 4000), (512, 512)),
])
def test_sizes_fitted_at_512_are_those_of_lumina(size, expected):
    assert fitted_size(*size, target_px=512, unit_px=32) == expected


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (37, 91), (300, 299)])
def test_a_fitted_size_is_whole_units_within_the_budget_and_the_aspect(size):
    width, height = fitted_size(*size, target_px=512, unit_px=32)
    assert width % 32 == 0 and height % 32 == 0
    assert (width // 32) * (height // 32) <= 16 * 16
    assert max(width, height) / min(width, height) <= 4


def test_turning_a_picture_turns_its_fitted_size():
    assert fitted_size(400, 600, 512, 32) == tuple(reversed(fitted_size(600, 400, 512, 32)))


def test_a_photo_fits_the_tiny_models_grid(photos_dir):
    image = load_image(photos_dir / "chelsea.png")
    fitted = fit_image(image, target_px=48, unit_px=16)
    assert fitted.mode == "RGB"
    assert fitted.size == fitted_size(*image.size, target_px=48, unit_px=16)


def test_covering_keeps_the_centre_and_the_aspect():
    pixels = numpy.zeros((40, 120, 3), dtype=numpy.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    covered = numpy.asarray(resize_to_cover(Image.fromarray(pixels), (40, 40)))
    assert (covered == (0, 255, 0)).all()


def test_covering_halves_by_averaging_so_fine_detail_becomes_its_mean():
    checkers = (numpy.indices((64, 64)).sum(0) % 2 * 255).astype(numpy.uint8)
    covered = numpy.asarray(resize_to_cover(Image.fromarray(checkers).convert("RGB"), (16, 16)))
    assert abs(covered.astype(int) - 127.5).max() <= 1


def test_a_picture_of_the_right_size_is_not_touched(photos_dir):
    image = load_image(photos_dir / "astronaut.png")
    assert numpy.array_equal(resize_to_cover(image, image.size), image)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode):
    clear = Image.new(mode, (4, 4))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparency_is_mixed_with_white():
    red, green, blue = to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    assert red == 255 and abs(green - 127) <= 1 and abs(blue - 127) <= 1


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    loaded = load_image(tmp_path / "palette.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new("RGB", (5, 3), "white").convert(mode).save(path)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (5, 3) and image.getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_taken_on_its_side_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: turn a quarter clockwise
    Image.new("RGB", (6, 2), "red").save(tmp_path / "side.jpg", exif=exif)
    assert load_image(tmp_path / "side.jpg").size == (2, 6)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png.*0 bytes"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize("damage", [
    lambda data: data[:len(data) // 2],
    lambda data: b"this is text" * 20,
    lambda data: data[:100] + bytes(200) + data[300:],
], ids=["cut", "text", "overwritten"])
def test_a_corrupt_file_is_named(tmp_path, photos_dir, damage):
    path = tmp_path / "corrupt.png"
    path.write_bytes(damage((photos_dir / "coffee.png").read_bytes()))
    with pytest.raises(UserError, match=r"corrupt\.png can't be read as an image"):
        load_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.png"):
        load_image(tmp_path / "absent.png")


def test_listing_a_folder_gives_its_pictures_sorted(tmp_path, photos_dir):
    for name in ("b.PNG", "a.jpeg", ".hidden.png"):
        shutil.copy(photos_dir / "chelsea.png", tmp_path / name)
    (tmp_path / "a.txt").write_text("cat")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG"]


def test_odd_names_and_folders_called_as_pictures_are_passed_over_with_the_reason(tmp_path, photos_dir):
    good = tmp_path / "a.png"
    shutil.copy(photos_dir / "coffee.png", good)
    os.link(good, os.path.join(os.fsencode(tmp_path), b"\xff.png"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    listing = listed_images(tmp_path)
    assert listing.images == list_images(tmp_path) == [good]
    assert sorted(reason.split(",")[0] for _, reason in listing.unread) == ["it is no file", "its name"]
    assert listing.hint.encode()  # can be printed


def test_pixels_are_scaled_to_plus_minus_one():
    pixels = to_pixels([Image.new("RGB", (3, 2), "black"), Image.new("RGB", (3, 2), "white")])
    assert pixels.shape == (2, 3, 2, 3)
    assert pixels[0].unique().tolist() == [-1.0] and pixels[1].unique().tolist() == [1.0]


def test_every_value_survives_the_way_to_pixels_and_back(photos_dir):
    ramp = Image.fromarray(numpy.arange(256, dtype=numpy.uint8).reshape(16, 16)).convert("RGB")
    for image in (ramp, load_image(photos_dir / "chelsea.png")):
        (back,) = to_pil(to_pixels([image]))
        assert numpy.array_equal(back, image)


def test_pixels_beyond_the_range_are_clamped():
    pixels = to_pixels([Image.new("RGB", (1, 1), "white")])
    (bright,), (dark,) = to_pil(pixels * 5), to_pil(pixels * -5)
    assert bright.getpixel((0, 0)) == (255, 255, 255) and dark.getpixel((0, 0)) == (0, 0, 0)


def test_a_tint_goes_and_details_stay(photos_dir):
    photo = numpy.asarray(load_image(photos_dir / "chelsea.png").crop((100, 50, 180, 120)),
                          dtype=int) // 2 + 60
    stripes = numpy.arange(80)[None, :, None] % 2 * 20 - 10
    tinted = Image.fromarray((photo + stripes + [30, -25, 15]).astype(numpy.uint8))
    found = numpy.asarray(with_colors_of(Image.fromarray(photo.astype(numpy.uint8)), tinted), dtype=int)
    # the edge's repeated column is a little colour of its own
    middle = found[:, 2:-2] - (photo + stripes)[:, 2:-2]
    assert abs(middle).max() <= 2
    striped = Image.fromarray((photo + stripes).astype(numpy.uint8))
    assert abs(numpy.asarray(with_colors_of(striped, Image.fromarray(photo.astype(numpy.uint8))),
                             dtype=int) - photo).max() <= 2


def test_the_colours_of_a_smaller_image_do():
    found = with_colors_of(Image.new("RGB", (8, 4), (10, 200, 90)), Image.new("RGB", (40, 20), (60, 70, 80)))
    assert found.size == (40, 20) and found.getcolors() == [(800, (10, 200, 90))]


def test_a_photo_of_many_rows_gets_the_colours_it_gets_whole(photos_dir, monkeypatch):
    photo, other = (load_image(photos_dir / f"{name}.png").resize((60, 150))
                    for name in ("coffee", "chelsea"))
    whole = with_colors_of(photo, other)
    monkeypatch.setattr("realsr_r1.core.images.COLOR_FIX_BAND", 20)
    assert with_colors_of(photo, other).tobytes() == whole.tobytes()
