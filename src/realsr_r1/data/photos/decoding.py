"""Decodes one photo, wherever it comes from, within a limit of memory.

Whatever is wrong with the file becomes a `UserError` that gives the reason.
"""

from __future__ import annotations

import logging

from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.pictures import Picture, decode_picture
from realsr_r1.data.photos.sources import Photo

# px of a photo, so that a worker stays below 1 GiB: turning a photo upright takes a second copy,
# compositing a transparent one takes four. (Colours of 16 bits may take 1.2 GiB.)
MOST_PIXELS = 64_000_000
MOST_PIXELS_TRANSPARENT = 24_000_000

logger = logging.getLogger(__name__)


def decode(photo: Photo) -> Image.Image:
    """The photo as an upright RGB image: that of `picture_of`."""
    return picture_of(photo).image


def picture_of(photo: Photo) -> Picture:
    """The photo as `core.pictures` reads it.

    Transparency is composited on white; a note that the picture has is logged. Raises `UserError`
    that names the photo when it can't be decoded or is too large.
    """
    try:
        with photo.place.open() as file:
            picture = decode_picture(file, photo.name, MOST_PIXELS, MOST_PIXELS_TRANSPARENT)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of the disk, or of the archive that it lies in
        raise UserError(f"{photo.name} can't be read as an image ({error})") from error
    if picture.note:
        logger.warning(picture.note)
    return picture
