"""Reads and writes pictures: whatever the file holds, what comes out is upright, 8 bits, sRGB.

The project's only reader of pictures, so that what it refuses is refused everywhere in the same
words. Turned upright by EXIF; an embedded colour profile is converted to sRGB, a broken one is left
aside with a note; values of 16 bits and floating-point ones in 0..1 are scaled to 8 bits; CMYK,
palettes and 1 bit become RGB. Of a TIFF of several pages, of a camera's MPO and of an HEIC of several
shots the first picture is read; animations are refused. Says of other files by their names and first
bytes why they are no photos for us.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from realsr_r1.core.bit_depth import DEEP_GREY, colors_in_8_bits, grey_in_8_bits, has_deep_colors
from realsr_r1.core.color_profiles import in_srgb
from realsr_r1.core.errors import UserError

# Pillow's names of the formats that are read -> their suffixes. Formats that run other programs
# (EPS), and films, scientific data and icons are left out, and listed with their reason.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".mpo",), "PNG": (".png", ".apng"),
    "WEBP": (".webp",), "AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"), "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"), "GIF": (".gif",), "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"), "PCX": (".pcx",), "PSD": (".psd",), "QOI": (".qoi",),
    "TGA": (".tga", ".icb", ".vda", ".vst"), "SGI": (".sgi", ".bw", ".rgb", ".rgba"), "SUN": (".ras",),
    "DDS": (".dds",)}
READ = ("Pictures are read as JPEG (.jfif, too), PNG, WebP, AVIF, HEIC, TIFF, BMP, GIF, JPEG 2000, PPM, PCX, "
        "PSD, QOI, TGA, SGI, Sun raster and DDS, their suffixes in any case; others are named with the "
        "reason.")
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Pictures that Pillow can't read, or not as photos -> their suffixes.
UNREAD = {
    "a camera's raw file": (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc",
                            ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
                            ".srf", ".srw", ".x3f"),
    "a drawing": (".ai", ".cdr", ".emf", ".eps", ".ps", ".svg", ".svgz", ".wmf"),
    "a JPEG XL picture": (".jxl",), "a JPEG XR picture": (".jxr", ".hdp", ".wdp"),
    "a picture of high dynamic range": (".exr", ".hdr"), "an icon": (".cur", ".icns", ".ico"),
    "a program's working file": (".afphoto", ".clip", ".kra", ".psb", ".xcf"),
    "scientific data": (".dcm", ".fit", ".fits", ".h5", ".hdf")}
# What the files of common formats begin with.
BEGINNINGS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF",
              b"MM\0*": "TIFF"}
FIRST_OF_SEVERAL = ("HEIF", "MPO", "PSD", "TIFF")  # the others are shots, views, layers or pages
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF tag
PLAIN_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Picture:
    """A picture as the project works with it, and what is needed to write it back as it came.

    `image`: RGB, 8 bits, upright, sRGB, transparency composited on white. `alpha`: its opacity
    (mode L, 0 is clear), None where it has none. `is_grey`: the file holds brightness only, no
    colours. `note`: one line on what couldn't be taken into account, else None. `is_plain`: `image`
    holds the file's own values, which any reader finds in it: 8 bits, RGB, in a common format,
    without a colour profile, a turn or transparency.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    is_grey: bool = False
    note: str | None = None
    is_plain: bool = False


def read_picture(path: str | Path, most_pixels: int | None = None) -> Picture:
    """Read a picture file.

    `most_pixels`: the largest picture that is decoded, in px (default: Pillow's limit, 178 million).
    Raises `UserError` that names the file and the reason when it can't be read, or not rightly.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    with open(path, "rb") as file:
        return decode_picture(file, str(path), most_pixels)


def decode_picture(file: BinaryIO, name: str, most_pixels: int | None = None,
                   most_transparent: int | None = None) -> Picture:
    """Read a picture from an open file; `name` is what messages call it.

    `most_pixels`: as in `read_picture`. `most_transparent`: the same for pictures with
    transparency, which take more memory. Raises `UserError` as `read_picture` does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large or odd files: what matters is checked here
            with _opened(file, name) as image:
                _check(image, name, most_pixels, most_transparent)
                deep = colors_in_8_bits(image, file) if has_deep_colors(image) else image
                deep.load()
                is_plain = deep is image and _is_plain(image)
                return replace(as_picture(deep, name, owned=True), is_plain=is_plain)
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text holds an address, which differs in each run
        raise UserError(f"{name} can't be read as an image (none of the known formats)") from error
    except Exception as error:  # on a damaged file decoders raise anything
        raise UserError(f"{name} can't be read as an image ({error})") from error


def why_not_listed(path: Path) -> str | None:
    """Return why a file whose suffix is none of `IMAGE_SUFFIXES` isn't read, if it is a picture.

    It is one by its suffix or its first bytes. None for other files, such as texts.
    """
    reason = why_unread(path.suffix)
    if reason is not None:
        return f"it {reason}"
    try:
        with open(path, "rb") as file:
            kind = _kind_of(file.read(16))
    except OSError:  # a text that may not be read is for its own reader to complain of
        return None
    if kind is None:
        return None
    suffix = f"the suffix {path.suffix}" if path.suffix else "no suffix"
    return f"it holds a {kind} picture and has {suffix}; rename it to {path.name}.{kind.lower()}"


def why_unread(suffix: str) -> str | None:
    """Return what a picture with this suffix is that isn't read, and the way out; None for others."""
    kind = next((kind for kind, suffixes in UNREAD.items() if suffix.lower() in suffixes), None)
    return kind and f"is {kind} ({suffix}), which isn't read; save it as PNG, TIFF or JPEG"


def _kind_of(start: bytes) -> str | None:
    if start[4:8] == b"ftyp" and start[8:12] in (*HEIF_BRANDS, b"avif", b"avis"):
        return "AVIF" if start[8:12].startswith(b"avi") else "HEIC"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for beginning, kind in BEGINNINGS.items() if start.startswith(beginning)), None)


def _opened(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(12)
    if not start:
        raise UserError(f"{name} is empty (0 bytes)")
    file.seek(0)
    Image.init()
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if start[4:8] != b"ftyp" or start[8:] not in HEIF_BRANDS or "HEIF" in Image.OPEN:
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UserError(f"{name} is an HEIC picture, which Pillow reads only with pillow-heif: pip install "
                        "pillow-heif, or save the picture as JPEG or PNG") from error
    register_heif_opener()
    file.seek(0)
    return Image.open(file, formats=["HEIF"])


def _check(image: Image.Image, name: str, most_pixels: int | None, most_transparent: int | None) -> None:
    width, height = image.size
    is_transparent = image.has_transparency_data
    limit = most_transparent if is_transparent and most_transparent is not None else most_pixels
    if limit is not None and width * height > limit:
        kind = " with transparency" if is_transparent and most_transparent is not None else ""
        raise UserError(f"{name} has {width}x{height} px; a photo{kind} has at most {limit / 1e6:g} million: "
                        "scale it down")
    if getattr(image, "is_animated", False) and image.format not in FIRST_OF_SEVERAL:
        raise UserError(f"{name} is an animation of {image.n_frames} frames, no photo")


def _is_plain(image: Image.Image) -> bool:
    return (image.mode == "RGB" and image.format in PLAIN_FORMATS and not image.has_transparency_data
            and "icc_profile" not in image.info and image.getexif().get(ORIENTATION, 1) == 1)


def as_picture(image: Image.Image, name: str = "the picture", owned: bool = False) -> Picture:
    """Return a PIL image of any mode as a `Picture`, with what its `info` says (EXIF, ICC, ...).

    `name`: what messages call it. `owned`: its pixels may be overwritten. Raises `UserError` when
    its values can't be read rightly.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image, owned = ImageOps.exif_transpose(image), True
    profile = image.info.get("icc_profile") if image.mode != "LAB" else None  # Lab is the same everywhere
    is_grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(DEEP_GREY)
    colors, alpha = _split(image, name)
    note = None
    if profile:
        try:
            colors = in_srgb(colors, profile, owned or colors is not image)
        except UserError as error:
            note = f"{name}: its colour profile is left aside, for {error}; its colours are taken as sRGB"
    if colors.mode != "RGB" or colors is image and not owned:
        colors = colors.convert("RGB")
    colors.info = {}  # what it says (profile, orientation, ...) is done, and must not be done again
    if alpha is not None:
        colors.putalpha(alpha)
        white = Image.new("RGBA", colors.size, WHITE)
        white.alpha_composite(colors)
        colors = white.convert("RGB")
    return Picture(colors, alpha, is_grey, note)


def _split(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Return the image's colours (mode L, RGB or CMYK) and its alpha."""
    if image.mode.startswith(DEEP_GREY):
        image = grey_in_8_bits(image, name)
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None
