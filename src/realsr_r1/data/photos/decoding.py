"""Decodes one photo, wherever it comes from, within a limit of memory.

Whatever is wrong with the file becomes a `UserError` that gives the reason.
"""

from __future__ import annotations

import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import to_rgb
from realsr_r1.data.photos.sources import Photo

# px of a photo, so that a worker stays below 1 GiB: turning a photo upright takes a second copy,
# compositing a transparent one takes four.
MOST_PIXELS = 64_000_000
MOST_PIXELS_TRANSPARENT = 24_000_000


def decode(photo: Photo) -> Image.Image:
    """The photo as an upright RGB image.

    Values of 16 bits are scaled to 8, and transparency is composited on white. Raises `UserError`
    that names the photo when it can't be decoded or is too large.
    """
    try:
        with warnings.catch_warnings(), photo.place.open() as file:
            warnings.simplefilter("ignore")  # Pillow's, of large or odd files: what matters is checked here
            if not file.read(1):
                raise UserError(f"{photo.name} is empty (0 bytes)")
            file.seek(0)
            with Image.open(file) as image:
                _check(photo.name, image)
                image.load()
                image = eight_bits(image)
                ImageOps.exif_transpose(image, in_place=True)
                is_plain = image.mode == "RGB" and "transparency" not in image.info
                return image if is_plain else to_rgb(image)
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text holds an address, which differs in each run
        raise UserError(f"{photo.name} can't be read as an image (none of the known formats)") from error
    except Exception as error:  # on a damaged file decoders raise anything
        raise UserError(f"{photo.name} can't be read as an image ({error})") from error


def _check(name: str, image: Image.Image) -> None:
    width, height = image.size
    is_transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    limit = MOST_PIXELS_TRANSPARENT if is_transparent else MOST_PIXELS
    if width * height > limit:
        kind = " with transparency" if is_transparent else ""
        raise UserError(f"{name} has {width}x{height} px; a photo{kind} has at most {limit // 1_000_000} "
                        "million: scale it down")
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "TIFF"):  # previews, say
        raise UserError(f"{name} is an animation of {image.n_frames} frames, no photo")
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point values; save it with 8 or 16 bits")


def eight_bits(image: Image.Image) -> Image.Image:
    """`image` with grey values of 16 bits scaled to 8 bits; other images as they are.

    Pillow's own conversion would cut all values off at 255.
    """
    if not image.mode.startswith("I"):
        return image
    import numpy

    values = numpy.asarray(image)
    scaled = Image.fromarray((numpy.clip(values, 0, 65535) // 257).astype(numpy.uint8))
    scaled.info.update({key: value for key, value in image.info.items() if key == "exif"})
    return scaled
