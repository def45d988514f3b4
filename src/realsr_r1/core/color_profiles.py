"""Embedded colour profiles (ICC): their pixels in sRGB, and the profile that says so in our files.

littleCMS computes (Pillow's `ImageCms`), relative colorimetric with black point compensation, as
photo editors do by default.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageChops, ImageCms

from realsr_r1.core.errors import UserError

# Mode of the pixels -> colour space that a profile for them names.
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
LATTICE = range(0, 256, 15)  # values of a channel at which a profile is compared with sRGB
DATE = slice(24, 36)  # bytes of a profile that hold when it was made


def in_srgb(image: Image.Image, profile: bytes, owned: bool = False) -> Image.Image:
    """Return `image` (mode L, RGB or CMYK) with its `profile`'s colours in sRGB.

    An image whose profile is sRGB (up to 1 of 255) is returned as it is, and so is mode L where the
    grey has sRGB's curve; else the result has mode RGB. `owned`: the pixels may be overwritten.
    Grey with a profile for colours, which programs leave behind when they make a photo grey, is taken
    as equal red, green and blue. Raises `UserError` with the reason when the profile is broken or is
    one for other pixels.
    """
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    if image.mode != transform.input_mode:
        image, owned = image.convert("RGB"), True
    if owned and image.mode == "RGB":
        ImageCms.applyTransform(image, transform, inPlace=True)
        return image
    return ImageCms.applyTransform(image, transform)


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of this profile's colours to sRGB, None where it would change nothing."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if mode == "L" and space == "RGB":
            return _transform(profile, "RGB")
        if space != SPACES[mode]:
            raise UserError(f"it is one for {space} and the pixels are {SPACES[mode]}")
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB",
                                            ImageCms.Intent.RELATIVE_COLORIMETRIC,
                                            ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise UserError("it is broken") from error
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    change = ImageChops.difference(ImageCms.applyTransform(probe, transform), probe.convert("RGB"))
    return transform if max(highest for _, highest in change.getextrema()) > 1 else None


def _probe(mode: str) -> Image.Image:
    """Return an image with colours from everywhere in the mode's range."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    colors = bytes(value for red in LATTICE for green in LATTICE for blue in LATTICE
                   for value in (red, green, blue))
    return Image.frombytes("RGB", (len(LATTICE), len(LATTICE)**2), colors)


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Return the sRGB profile that our files carry: the same bytes whenever it is asked for."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[DATE] = bytes([7, 234, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])  # 2026-01-01
    return bytes(profile)
