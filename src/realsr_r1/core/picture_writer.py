"""Writes pictures as they came: grey as grey, with their transparency, tagged as sRGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from realsr_r1.core.color_profiles import srgb_profile
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file
from realsr_r1.core.pictures import Picture

# What `write_picture` can write: Pillow's name, the longest side in px, the quality if none is given
# (None: the format is lossless).
WRITTEN = {"png": ("PNG", 2**31 - 1, None), "jpg": ("JPEG", 65_500, 95), "webp": ("WEBP", 16_383, 90)}


def check_format(format: str, quality: int | None = None) -> None:
    """Raise `UserError` unless `format` is one of `WRITTEN` and takes this quality (1 to 100)."""
    if format not in WRITTEN:
        raise UserError(f"format {format!r} can't be written; choose one of {', '.join(WRITTEN)}")
    if quality is None:
        return
    if WRITTEN[format][2] is None:
        raise UserError(f"{format} is lossless and has no quality; leave quality out, or choose jpg or webp")
    if not 1 <= quality <= 100:
        raise UserError(f"quality {quality} is not in 1 to 100")


def write_picture(path: str | Path, image: Image.Image, like: Picture, format: str = "png",
                  quality: int | None = None) -> str | None:
    """Write `image` (RGB, sRGB, of any size) to `path` in the way the picture `like` came.

    It gets the alpha of `like`, scaled bicubically to its size, and is grey where `like` is (WebP
    has no grey: there it's RGB). All files are tagged as sRGB, but for grey JPEG, which has no tag
    for it. `format`: png, jpg or webp. `quality`: 1 to 100, for jpg and webp (default: 95 and 90).
    Returns one line on what the format couldn't keep, or None. Raises `UserError` when the format
    doesn't exist, can't hold the size or has no such quality.
    """
    path = Path(path)
    check_format(format, quality)
    name, longest, usual = WRITTEN[format]
    if max(image.size) > longest:
        raise UserError(f"{path} can't be {format}, which ends at {longest} px a side, and it has "
                        f"{image.width}x{image.height} px; choose png")
    alpha = like.alpha
    note = None
    if format == "jpg" and alpha is not None:
        if alpha.getextrema()[0] < 255:
            note = f"{path}: jpg has no transparency, so it is on white; png and webp keep it"
        alpha = None
    if alpha is not None:
        alpha = alpha if alpha.size == image.size else alpha.resize(image.size, Image.Resampling.BICUBIC)
        image = _off_white(image, alpha)
    image = image.convert("L" if like.is_grey else "RGB")
    if alpha is not None:
        image.putalpha(alpha)
    options: dict[str, Any] = {} if usual is None else {"quality": quality or usual}
    if not like.is_grey or format == "webp":
        options["icc_profile"] = srgb_profile()
    elif format == "png":  # a profile of three colours has no place in a grey file; PNG's own tag has
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add(b"sRGB", b"\x01")  # rendering intent: relative colorimetric
    if format == "jpg":
        options["subsampling"] = 0  # colours as sharp as the brightness
    with atomic_file(path) as partial:
        image.save(partial, format=name, **options)
    return note


def _off_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Take away the white that a half transparent picture was composited on.

    So it looks on white as `image` does, and has no pale edges on other grounds.
    """
    import numpy

    opacity = numpy.asarray(alpha)
    mixed = (opacity > 0) & (opacity < 255)
    if not mixed.any():
        return image
    pixels = numpy.array(image.convert("RGB"))
    share = opacity[mixed].astype(numpy.float32)[:, None] / 255
    straight = (pixels[mixed] - 255 * (1 - share)) / share
    pixels[mixed] = numpy.rint(straight).clip(0, 255).astype(numpy.uint8)
    return Image.fromarray(pixels)
