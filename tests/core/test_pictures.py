"""Whatever a picture file holds, it is read upright, in 8 bits and sRGB, or refused by name."""

from __future__ import annotations

import io
import sys

import cv2
import numpy
import pytest
from PIL import Image, ImageCms, ImageOps

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import list_images, load_image, to_rgb
from realsr_r1.core.pictures import IMAGE_SUFFIXES, as_picture, decode_picture, read_picture

from . import icc

RAMP = numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256)
RIGHT = numpy.rint(RAMP / 257).astype(numpy.uint8)
PIXELS = numpy.random.default_rng(7).integers(0, 65536, (20, 30, 3), dtype=numpy.uint16)


def values(image):
    return numpy.asarray(image).astype(int)


@pytest.fixture
def photo(photos_dir):
    with Image.open(photos_dir / "chelsea.png") as image:
        return image.convert("RGB").crop((100, 40, 220, 130))


# --- Bit depth ---

@pytest.mark.parametrize("name, mode", [("a.png", "I;16"), ("a.tif", "I;16"), ("a.tif", "I;16B"),
                                        ("a.tif", "I"), ("a.pgm", "I")])
def test_grey_of_16_bits_is_divided_by_257(tmp_path, name, mode):
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (256, 256), RAMP.astype(kind).tobytes())
    image.save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert picture.is_grey and picture.alpha is None
    assert (values(picture.image) == RIGHT[..., None]).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_become_what_the_same_grey_becomes(tmp_path, name, channels):
    ramps = numpy.stack([RAMP, RAMP[::-1], RAMP.T, numpy.full_like(RAMP, 65535)][:channels], axis=-1)
    cv2.imwrite(str(tmp_path / name), ramps)
    picture = read_picture(tmp_path / name)
    right = numpy.stack([RIGHT.T, RIGHT[::-1], RIGHT], axis=-1)  # OpenCV writes blue, green, red
    assert not picture.is_grey and (picture.alpha is not None) == (channels == 4)
    assert (values(picture.image) == right).all()


def test_grey_of_16_bits_with_a_clear_value_is_on_white(tmp_path):
    image = Image.frombytes("I;16", (256, 256), RAMP.astype("<u2").tobytes())
    image.save(tmp_path / "a.png", transparency=514)
    picture = read_picture(tmp_path / "a.png")
    assert picture.is_grey and values(picture.alpha)[2, 2] == 0 and values(picture.image)[2, 2, 0] == 255
    assert values(picture.alpha).sum() == 255 * 65535 and values(picture.image)[2, 3, 0] == 2


def test_a_picture_of_16_bits_that_only_pillow_reads_is_read(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert (values(load_image(tmp_path / "a.png")) == PIXELS[..., ::-1] >> 8).all()


def test_floats_in_0_to_1_are_scaled(tmp_path):
    Image.fromarray((RAMP / 65535).astype(numpy.float32)).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert picture.is_grey and abs(values(picture.image)[..., 0] - RIGHT).max() == 0


@pytest.mark.parametrize("lowest, highest", [(0, 255), (-1, 1), (0, 1.1), (0, float("nan")),
                                             (0, float("inf"))])
def test_floats_of_another_range_are_refused_by_name(tmp_path, lowest, highest):
    Image.fromarray(numpy.array([[lowest, highest]], dtype=numpy.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif holds floating-point values.*8 or 16 bits"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("lowest, highest", [(-1, 9), (0, 65536), (0, 255)])
def test_whole_numbers_of_32_bits_that_may_mean_anything_are_refused_by_name(tmp_path, lowest, highest):
    Image.fromarray(numpy.array([[lowest, highest]], dtype=numpy.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif holds whole numbers of 32 bits.*8 or 16 bits"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_that_is_in_memory_becomes_rgb_as_from_a_file(mode):
    kind = {"I;16": "<u2", "I": "<i4", "F": "<f4"}[mode]
    ramp = RAMP / 65535 if mode == "F" else RAMP
    image = Image.frombytes(mode, (256, 256), ramp.astype(kind).tobytes())
    assert (values(to_rgb(image)) == RIGHT[..., None]).all()


# --- Colours ---

@pytest.mark.parametrize("primaries, gamma, color, right", [
    # sRGB's own primaries as Display P3 and ProPhoto have them (CSS Color 4), rounded to 8 bits
    (icc.DISPLAY_P3, None, (234, 51, 35), (255, 0, 0)), (icc.DISPLAY_P3, None, (117, 251, 76), (0, 255, 0)),
    (icc.DISPLAY_P3, None, (0, 0, 245), (0, 0, 255)), (icc.DISPLAY_P3, None, (90, 90, 90), (90, 90, 90)),
    (icc.PROPHOTO, 1.8, (179, 70, 26), (255, 0, 0)), (icc.PROPHOTO, 1.8, (138, 237, 78), (0, 255, 0)),
    (icc.PROPHOTO, 1.8, (100, 100, 100), (119, 119, 119)), (icc.SRGB, 1.0, (55, 55, 55), (128, 128, 128))])
def test_known_colours_of_wide_profiles(primaries, gamma, color, right):
    image = Image.new("RGB", (4, 4), color)
    image.info["icc_profile"] = icc.matrix_profile(primaries, gamma)
    assert abs(values(to_rgb(image))[0, 0] - right).max() <= 4


@pytest.mark.parametrize("primaries, gamma", [(icc.DISPLAY_P3, None), (icc.PROPHOTO, 1.8)])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_a_photo_in_a_wide_profile_comes_back_in_srgb(tmp_path, photo, primaries, gamma, name):
    light = icc.decoded(values(photo) / 255) @ (numpy.linalg.inv(primaries) @ icc.SRGB).T
    stored = icc.encoded(light) if gamma is None else light.clip(0) ** (1 / gamma)
    wide = Image.fromarray(numpy.rint(stored.clip(0, 1) * 255).astype(numpy.uint8))
    wide.save(tmp_path / name, icc_profile=icc.matrix_profile(primaries, gamma), lossless=True)
    picture = read_picture(tmp_path / name)
    off = abs(values(picture.image) - values(photo))
    assert off.mean() < 1 and numpy.percentile(off, 99) <= 4 and picture.note is None
    assert abs(values(wide) - values(photo)).mean() > 4
    assert (values(to_rgb(picture.image)) == values(picture.image)).all()  # not converted twice


def test_a_profile_that_is_srgb_changes_nothing(tmp_path, photo):
    photo.save(tmp_path / "a.png", icc_profile=icc.matrix_profile(icc.SRGB))
    image = load_image(tmp_path / "a.png")
    assert (values(image) == values(photo)).all() and "icc_profile" not in image.info


def test_a_profile_holds_for_a_transparent_picture_and_for_a_palette(tmp_path):
    profile = icc.matrix_profile(icc.DISPLAY_P3)
    Image.new("RGBA", (4, 4), (234, 51, 35, 255)).save(tmp_path / "a.png", icc_profile=profile)
    Image.new("RGB", (4, 4), (117, 251, 76)).quantize(4).save(tmp_path / "b.png", icc_profile=profile)
    assert abs(values(load_image(tmp_path / "a.png"))[0, 0] - (255, 0, 0)).max() <= 4
    assert abs(values(load_image(tmp_path / "b.png"))[0, 0] - (0, 255, 0)).max() <= 4


def test_grey_with_a_profile_stays_grey_in_srgbs_curve(tmp_path):
    Image.new("L", (4, 4), 55).save(tmp_path / "a.png", icc_profile=icc.grey_profile(1.0))
    picture = read_picture(tmp_path / "a.png")
    assert picture.is_grey and abs(values(picture.image)[0, 0] - 128).max() <= 1


def test_grey_with_a_profile_for_colours_is_taken_as_equal_colours(tmp_path):
    for profile, right in ((icc.matrix_profile(icc.SRGB), 55), (icc.matrix_profile(icc.SRGB, 1.0), 128)):
        Image.new("L", (4, 4), 55).save(tmp_path / "a.png", icc_profile=profile)
        picture = read_picture(tmp_path / "a.png")
        assert picture.is_grey and picture.note is None
        assert abs(values(picture.image)[0, 0] - right).max() <= 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_read_with_its_profile_and_without(tmp_path, name):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    cyan.save(tmp_path / name)
    assert abs(values(load_image(tmp_path / name))[0, 0] - (0, 255, 255)).max() <= 2
    inks = icc.cmyk_profile(lambda c, m, y, k: (max(0, 100 - 100 * k - 20 * (c + m + y)), 60 * m - 50 * c, 0))
    cyan.save(tmp_path / name, icc_profile=inks)
    assert abs(values(load_image(tmp_path / name))[0, 0] - (36, 223, 196)).max() <= 3  # Lab 80, -50, 0


@pytest.mark.parametrize("profile, reason", [
    (b"no profile at all", "it is broken"), (icc.matrix_profile(icc.DISPLAY_P3)[:200], "it is broken"),
    (icc.grey_profile(1.0), "it is one for GRAY and the pixels are RGB")])
def test_a_profile_that_cant_be_used_is_left_aside_with_a_note(tmp_path, photo, profile, reason, caplog):
    photo.save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    assert picture.note.startswith(f"{tmp_path / 'a.png'}: its colour profile is left aside, for {reason}")
    assert (values(load_image(tmp_path / "a.png")) == values(photo)).all() and picture.note in caplog.text


# --- Orientation, transparency, kinds of files ---

@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name, depth", [("a.jpg", 8), ("a.png", 8), ("a.tif", 8), ("a.webp", 8),
                                         ("a.avif", 8), ("a.png", 16), ("a.tif", 16)])
def test_all_orientations_are_turned_upright(tmp_path, orientation, name, depth):
    upright = numpy.zeros((32, 48, 3), dtype=numpy.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}.get(orientation)
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if depth == 16:  # only grey, since Pillow writes no other picture of 16 bits
        grey = numpy.asarray(stored.convert("L")).astype(numpy.uint16) * 257
        Image.fromarray(grey).save(tmp_path / name, exif=exif)
        upright = numpy.asarray(Image.fromarray(upright).convert("L").convert("RGB"))
    else:
        stored.save(tmp_path / name, exif=exif, **({"quality": 95} if name != "a.png" else {}))
    image = read_picture(tmp_path / name).image
    assert image.size == (48, 32)
    for x, y in ((8, 6), (40, 6), (8, 26), (40, 26)):
        assert abs(values(image)[y, x] - upright[y, x]).max() < 12
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode, is_grey", [("RGBA", False), ("LA", True), ("PA", False), ("La", True),
                                           ("RGBa", False)])
def test_transparency_is_kept_and_composited_on_white(mode, is_grey):
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 128))
    image.putpixel((2, 0), (100, 100, 100, 0))
    step = {"PA": "P", "La": "LA"}.get(mode)
    image = image.convert(step or mode).convert(mode) if mode != "PA" else image.quantize().convert("PA")
    picture = as_picture(image)
    if mode != "PA":  # a palette's conversion rounds alpha away
        assert values(picture.alpha).tolist() == [[255, 128, 0]] and picture.is_grey == is_grey
        assert abs(values(picture.image)[0, :, 0] - [100, 177, 255]).max() <= 1
    assert picture.alpha is not None and picture.image.mode == "RGB"


def test_a_transparent_colour_counts(tmp_path):
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (50, 60, 70))
    image.save(tmp_path / "a.png", transparency=(9, 9, 9))
    picture = read_picture(tmp_path / "a.png")
    assert values(picture.alpha).tolist() == [[0, 255]]
    assert values(picture.image).tolist() == [[[255] * 3, [50, 60, 70]]]


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(numpy.array([[True, False]])).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.is_grey and values(picture.image)[0, :, 0].tolist() == [255, 0]


def test_the_first_page_of_a_tiff_is_read_and_an_animation_is_refused(tmp_path):
    pages = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert load_image(tmp_path / "a.tif").getpixel((0, 0)) == (255, 0, 0)
    for name in ("a.gif", "a.webp", "a.png", "a.avif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(UserError, match=rf"{name} is an animation of 2 frames, no photo"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ".png", ".webp", ".avif", ".tiff", ".bmp", ".gif",
                                    ".jp2", ".ppm", ".pcx", ".tga", ".qoi"])
def test_each_kind_of_file_that_is_listed_is_read(tmp_path, photo, suffix):
    photo.save(tmp_path / f"a{suffix}")
    (path,) = list_images(tmp_path)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == photo.size
    assert abs(values(image) - values(photo)).mean() < 8


def test_suffixes_of_any_case_are_listed_and_other_files_are_not(tmp_path):
    for name in ("a.AVIF", "b.Jfif", "c.HEIC", "d.tiff", "e.txt", "f.svg", "._g.jpg", "h", "i.eps"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path)] == ["a.AVIF", "b.Jfif", "c.HEIC", "d.tiff"]
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_a_heic_photo_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    with pytest.raises(UserError, match=r"a\.heic is an HEIC picture.*pip install pillow-heif"):
        read_picture(tmp_path / "a.heic")


def test_a_program_in_postscript_is_never_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UserError, match=r"a\.png can't be read as an image \(none of the known formats\)"):
        read_picture(tmp_path / "a.png")


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png.*200000000 pixels") as refused:
        read_picture(tmp_path / "bomb.png")
    assert "\n" not in str(refused.value)
    Image.new("1", (1000, 1001)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png has 1000x1001 px; a photo has at most 1 million"):
        read_picture(tmp_path / "large.png", most_pixels=1_000_000)


def test_a_picture_is_read_from_an_open_file_and_carries_nothing_that_would_be_saved_again(photo):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(buffer, "JPEG", exif=exif, icc_profile=icc.matrix_profile(icc.DISPLAY_P3), dpi=(300, 300))
    buffer.seek(0)
    image = decode_picture(buffer, "it").image
    assert image.info == {} and image.size == photo.size[::-1]
    with Image.open(buffer) as opened:
        right = ImageOps.exif_transpose(opened)
    assert (values(to_rgb(right)) == values(image)).all()


def test_making_rgb_leaves_the_image_itself_as_it_is(photo):
    photo.info["icc_profile"] = icc.matrix_profile(icc.DISPLAY_P3)
    before = values(photo)
    assert (values(to_rgb(photo)) != before).any()
    assert (values(photo) == before).all() and "icc_profile" in photo.info


def test_an_heic_of_a_phone_is_upright_and_of_several_shots_the_first_is_read(photos_dir, tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    photo, other = (load_image(photos_dir / f"{name}.png").resize((96, 64)) for name in ("chelsea", "coffee"))
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as turned:
        turned.save(tmp_path / "a.heic", "HEIF", quality=95, save_all=True, append_images=[other])
    jpeg, heic = (values(load_image(tmp_path / name)) for name in ("a.jpg", "a.heic"))
    assert heic.shape == jpeg.shape == (96, 64, 3)
    assert abs(heic.astype(int) - jpeg).mean() < 4


def test_lab_colours_are_read_and_their_profile_is_no_fault(tmp_path, photo):
    lab = ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(photo, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    converted.save(tmp_path / "lab.tif", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    found = read_picture(tmp_path / "lab.tif")
    assert found.note is None
    assert numpy.abs(numpy.asarray(found.image, int) - numpy.asarray(photo, int)).mean() < 1
