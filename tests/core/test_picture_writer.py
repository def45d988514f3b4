"""Pictures are written as they came: grey as grey, with their transparency, tagged as sRGB."""

from __future__ import annotations

import io

import numpy
import pytest
from PIL import Image, ImageCms

from realsr_r1.core.errors import UserError
from realsr_r1.core.picture_writer import write_picture
from realsr_r1.core.pictures import Picture, as_picture, read_picture

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def values(image):
    return numpy.asarray(image).astype(int)


@pytest.fixture
def photo(photos_dir):
    with Image.open(photos_dir / "chelsea.png") as image:
        return image.convert("RGB").crop((100, 40, 220, 130))


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_written_in_the_format_and_tagged_as_srgb(tmp_path, photo, format):
    path = tmp_path / f"a.{format}"
    assert write_picture(path, photo, Picture(photo), format) is None
    with Image.open(path) as image:
        assert image.format == FORMATS[format] and image.mode == "RGB" and image.size == photo.size
        profile = ImageCms.getOpenProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        assert abs(values(image) - values(photo)).mean() < (0.001 if format == "png" else 5)
    assert (values(read_picture(path).image) == values(Image.open(path))).all()  # the tag changes nothing
    written = path.read_bytes()
    write_picture(path, photo, Picture(photo), format)
    assert path.read_bytes() == written and [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("format, mode", [("png", "L"), ("jpg", "L"), ("webp", "RGB")])
def test_grey_is_written_as_grey(tmp_path, photo, format, mode):
    like = as_picture(photo.convert("L"))
    write_picture(tmp_path / "a", like.image, like, format)
    with Image.open(tmp_path / "a") as image:
        assert image.mode == mode
        assert image.info.get("srgb") == (1 if format == "png" else None)
        assert abs(values(image.convert("L")) - values(photo.convert("L"))).mean() < 3


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_kept_at_the_results_size(tmp_path, photo, format, mode):
    ramp = numpy.linspace(0, 255, photo.width).astype(numpy.uint8)
    alpha = Image.fromarray(numpy.tile(ramp, (photo.height, 1)))
    photo.putalpha(alpha)
    like = as_picture(photo.convert(mode))
    large = tuple(2 * side for side in like.image.size)
    assert write_picture(tmp_path / "a", like.image.resize(large), like, format, None) is None
    with Image.open(tmp_path / "a") as image:
        assert image.mode == (mode if format == "png" else "RGBA") and image.size == large
        right = alpha.resize(large, Image.Resampling.BICUBIC)
        assert abs(values(image.getchannel("A")) - values(right)).max() <= 1


def test_a_transparent_picture_looks_the_same_on_white_and_has_no_pale_edges(tmp_path):
    picture = as_picture(Image.new("RGBA", (8, 8), (200, 40, 60, 100)))
    write_picture(tmp_path / "a.png", picture.image, picture)
    with Image.open(tmp_path / "a.png") as image:
        assert abs(values(image)[0, 0] - (200, 40, 60, 100)).max() <= 2
    assert abs(values(read_picture(tmp_path / "a.png").image) - values(picture.image)).max() <= 1


def test_jpeg_says_that_it_has_no_transparency(tmp_path):
    clear = as_picture(Image.new("RGBA", (8, 8), (200, 40, 60, 0)))
    note = write_picture(tmp_path / "a.jpg", clear.image, clear, "jpg")
    assert note == f"{tmp_path / 'a.jpg'}: jpg has no transparency, so it is on white; png and webp keep it"
    assert values(read_picture(tmp_path / "a.jpg").image).min() > 250
    solid = as_picture(Image.new("RGBA", (8, 8), (200, 40, 60, 255)))
    assert write_picture(tmp_path / "a.jpg", solid.image, solid, "jpg") is None


def test_a_lower_quality_makes_a_smaller_file(tmp_path, photo):
    for format in ("jpg", "webp"):
        sizes = []
        for quality in (20, 60, 100):
            write_picture(tmp_path / "a", photo, Picture(photo), format, quality)
            sizes.append((tmp_path / "a").stat().st_size)
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2


@pytest.mark.parametrize("size, format, quality, reason", [
    ((4, 4), "gif", None, r"'gif' can't be written; choose one of png, jpg, webp"),
    ((4, 4), "png", 90, "png is lossless"), ((4, 4), "jpg", 101, "quality 101 is not in 1 to 100"),
    ((4, 4), "webp", 0, "quality 0 is not in 1 to 100"),
    ((16_384, 1), "webp", None, r"a can't be webp, which ends at 16383 px a side.*choose png"),
    ((1, 65_501), "jpg", None, r"a can't be jpg, which ends at 65500 px a side.*choose png")])
def test_what_a_format_cant_hold_is_refused(tmp_path, size, format, quality, reason):
    image = Image.new("RGB", size)
    with pytest.raises(UserError, match=reason):
        write_picture(tmp_path / "a", image, Picture(image), format, quality)
    assert list(tmp_path.iterdir()) == []
