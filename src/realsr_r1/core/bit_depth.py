"""Pixels of 16 or 32 bits and floating-point ones, scaled to 8 bits.

Pillow's own conversions cut grey values off at 255, and drop the lower half of colour values
instead of rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from realsr_r1.core.errors import UserError

if TYPE_CHECKING:
    import numpy

DEEP_GREY = ("I", "F")  # what modes of deep grey begin with: I;16, I;16B, I, F
# Half a step of 8 bits: what arithmetic may have pushed a float picture out of 0..1.
FLOAT_SLACK = 0.5 / 255
COMPARED_ROWS = 64


def grey_in_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Return a grey picture of mode I;16, I or F in mode L; LA where one value is transparent.

    Whole numbers go from 0..65535, floating-point ones from 0..1. Raises `UserError` that names the
    picture when its values have another range.
    """
    import numpy

    values = numpy.asarray(image)
    if image.mode == "F":
        low, high = (float(value) for value in (values.min(), values.max()))
        if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):  # not a number is neither
            raise UserError(f"{name} holds floating-point values from {low:g} to {high:g}, and only 0 to 1 "
                            "has one meaning; save it with 8 or 16 bits")
        return Image.fromarray(numpy.rint(values.clip(0, 1) * 255).astype(numpy.uint8))
    low, high = int(values.min()), int(values.max())
    is_ambiguous = image.mode == "I" and image.format != "PPM" and 0 < high < 256  # 8 bits in 32?
    if low < 0 or high > 65535 or is_ambiguous:
        raise UserError(f"{name} holds whole numbers of 32 bits, from {low} to {high}, and only those of 16 "
                        "bits (0 to 65535) have one meaning; save it with 8 or 16 bits")
    grey = Image.fromarray(_rounded(values))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray((values != image.info["transparency"]).astype(numpy.uint8) * 255))
    return grey


def has_deep_colors(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded picture has colours (or grey and alpha) of 16 bits."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)


def colors_in_8_bits(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Return an opened picture of 16-bit colours, rounded to 8 bits.

    OpenCV reads the lower halves of the values, where it can. A picture that it can't read, or
    reads in another way than Pillow, is what Pillow makes of it: the upper halves, which is at most
    1 of 255 darker.
    """
    import numpy

    transparent = image.info.get("transparency")
    found = _read_16_bits(file, image)
    image.load()
    if found is None:
        return image
    rounded, upper = found
    if rounded.shape[:2] != image.size[::-1] or not numpy.array_equal(
            numpy.asarray(image.crop((0, 0, image.width, len(upper)))), upper):
        return image
    result = Image.fromarray(rounded)
    if transparent is not None:
        # A file whose transparent colour shares its upper halves with others loses those, too.
        clear = (numpy.asarray(image) == [value >> 8 for value in transparent]).all(-1)
        result.putalpha(Image.fromarray((~clear).astype(numpy.uint8) * 255))
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _read_16_bits(file: BinaryIO, image: Image.Image) -> tuple[Any, Any] | None:
    """Read with OpenCV: (pixels in 8 bits, upper halves of the first rows), channels as in `image`.

    None when OpenCV can't read the file, or finds no 16 bits.
    """
    import cv2
    import numpy

    position = file.tell()
    file.seek(0)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(numpy.frombuffer(file.read(), dtype=numpy.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    finally:
        cv2.utils.logging.setLogLevel(level)
        file.seek(position)
    order = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "LA": [0, -1]}[image.mode]
    if values is None or values.dtype != numpy.uint16 or values.ndim != 3 or values.shape[2] < len(order):
        return None
    rounded = numpy.empty((*values.shape[:2], len(order)), dtype=numpy.uint8)
    for row, line in enumerate(values):  # row by row, since a copy of 32 bits of a photo is large
        rounded[row] = _rounded(line[:, order])
    return rounded, (values[:COMPARED_ROWS, :, order] >> 8).astype(numpy.uint8)


def _rounded(values: numpy.ndarray) -> numpy.ndarray:
    """Whole numbers in 0..65535 -> uint8, 257 to 1, rounded."""
    import numpy

    return ((values.astype(numpy.uint32) + 128) // 257).astype(numpy.uint8)
