"""Pictures as RGB images and pixel tensors: loading, scaling to [-1, 1], fitting."""

from __future__ import annotations

import logging
import os
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from realsr_r1.core.pictures import IMAGE_SUFFIXES, as_picture, read_picture, why_not_listed
from realsr_r1.core.texts import escaped, is_text

if TYPE_CHECKING:
    import numpy
    import torch

logger = logging.getLogger(__name__)
COLOR_FIX_LEVELS = 5
COLOR_FIX_REACH = 2**COLOR_FIX_LEVELS - 1  # px that a pixel's low frequencies depend on, each way
COLOR_FIX_BAND = 512  # rows of a photo whose colours are fixed at a time
MAX_ASPECT = 4.0  # Lumina-mGPT's limit of width to height, either way


@dataclass(frozen=True)
class ImageListing:
    """What a folder holds: its picture files, sorted, and what is passed over.

    `unread`: (file, reason) of pictures that aren't read. `deeper`: how many picture files lie in
    subfolders that were not entered.
    """

    images: list[Path]
    unread: list[tuple[Path, str]]
    deeper: int

    @property
    def hint(self) -> str:
        """What is passed over, as the end of a line; empty where nothing is."""
        parts = [f"{self.deeper} in its subfolders, which --recursive reads"] if self.deeper else []
        if self.unread:
            path, reason = self.unread[0]
            parts.append(f"{len(self.unread)} that can't be read, the first: {escaped(path.name)}: {reason}")
        return f"; passed over: {'; '.join(parts)}" if parts else ""


def listed_images(folder: str | Path, recursive: bool = False, without: Sequence[Path] = ()) -> ImageListing:
    """List the picture files of `folder`, and with `recursive` of its subfolders.

    Hidden files and folders are left out, and so are the folders in `without`. Links are followed,
    but no folder is entered twice.
    """
    images, unread, deeper, seen = [], [], 0, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real, here = os.path.realpath(parent), Path(parent)
        folders[:] = sorted(name for name in folders
                            if not name.startswith(".") and here / name not in without
                            and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        is_entered = recursive or here == Path(folder)
        for path in (here / name for name in sorted(names) if not name.startswith(".")):
            is_picture = path.suffix.lower() in IMAGE_SUFFIXES
            if is_picture and not is_entered:
                deeper += 1
            elif is_picture and not is_text(str(path)):
                unread.append((path, "its name, or that of its folder, is not UTF-8 text; rename it"))
            elif is_picture and path.is_file():
                images.append(path)
            elif is_picture and is_entered:
                unread.append((path, "it is no file, or a link to nowhere"))
            elif is_entered and path.is_file() and (reason := why_not_listed(path)):
                unread.append((path, reason))
    return ImageListing(sorted(images), unread, deeper)


def list_images(folder: str | Path) -> list[Path]:
    """The picture files right inside `folder`, sorted by name (hidden files are left out)."""
    return listed_images(folder).images


def load_image(path: str | Path) -> Image.Image:
    """Read a picture file as RGB: what `read_picture` reads, transparency composited on white.

    A note that it has is logged. Raises `UserError` that names a file that can't be read.
    """
    picture = read_picture(path)
    if picture.note:
        logger.warning(picture.note)
    return picture.image


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB in sRGB; a transparent one is composited on white.

    Raises `UserError` when its values can't be read rightly.
    """
    return as_picture(image).image


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """PIL images of one size -> float32 pixels (B, 3, H, W) in [-1, 1]."""
    import numpy
    import torch

    stacked = numpy.stack([numpy.asarray(to_rgb(image)) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)


def to_pil(pixels: torch.Tensor, rounded: bool = True) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] (clamped) -> PIL images.

    `rounded`: values become the nearest of 0 to 255; without it what follows the point is cut off.
    """
    import torch

    array = pixels.detach().float().clamp(-1, 1).add(1).mul(127.5)
    array = (array.round() if rounded else array).to(torch.uint8)
    return [Image.fromarray(item) for item in array.permute(0, 2, 3, 1).cpu().numpy()]


def fitted_size(width: int, height: int, target_px: int, unit_px: int) -> tuple[int, int]:
    """The size (width, height) in px that Lumina-mGPT fits an image of this size to.

    Both sides are multiples of `unit_px`, the area is at most (target_px / unit_px)^2 units, and
    the longer side is at most 4 times the shorter. Of the sizes that remain, the one whose shape is
    closest to the image's own is taken (Lumina-mGPT's rule; with target 512 and unit 32, 600x400
    becomes 608x416).
    """
    budget = (target_px // unit_px) ** 2
    candidates = []
    columns, rows = budget, 1
    while columns > 0:
        if max(columns, rows) / min(columns, rows) <= MAX_ASPECT:
            candidates.append((columns * unit_px, rows * unit_px))
        if (rows + 1) * columns <= budget:
            rows += 1
        else:
            columns -= 1

    def overlap(size: tuple[int, int]) -> float:
        scale_w, scale_h = size[0] / width, size[1] / height
        return min(scale_w, scale_h) / max(scale_w, scale_h)

    return max(candidates, key=lambda size: (overlap(size), size))


def resize_to_cover(image: Image.Image, size: tuple[int, int], offset: Offset | None = None) -> Image.Image:
    """Scale `image` until it covers `size` (width, height), as `scale_to_cover`; crop it to that.

    `offset`: says where the crop begins in the covering picture, by default that of the centre.
    """
    image = scale_to_cover(image, size)
    left, top = (offset or centre_offset)(image, size)
    return image.crop((left, top, left + size[0], top + size[1]))


def cover_offset(covering: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Where the centre of `size` (width, height) begins in a picture of the size `covering`."""
    return (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2


def centre_offset(covering: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Call `cover_offset` for a picture."""
    return cover_offset(covering.size, size)


def drawn_offset(covering: Image.Image, size: tuple[int, int],
                 draw: random.Random | None = None) -> tuple[int, int]:
    """Draw where `size` (width, height) begins in a picture; all places are equally likely.

    `draw`: gives the random numbers, by default from the picture's own pixels, so that a photo is
    always cropped alike, in every run and on every rank.
    """
    draw = draw or random.Random(zlib.crc32(covering.tobytes()))
    return draw.randint(0, covering.width - size[0]), draw.randint(0, covering.height - size[1])


Offset = Callable[[Image.Image, tuple[int, int]], tuple[int, int]]
# The ways to fit a photo by cropping it (`fit` of the chain settings) -> where the crop begins.
OFFSETS: dict[str, Offset] = {"crop": centre_offset, "random_crop": drawn_offset}


def scale_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale `image`, which keeps its shape, until it covers `size` (width, height).

    It is halved with a box filter while both sides are at least twice the size, then scaled
    bicubically.
    """
    width, height = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covered = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covered != image.size:
        image = image.resize(covered, Image.Resampling.BICUBIC)
    return image


def scale_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at exactly `size` (width, height): bicubic up, box filter and bicubic down."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def fit_image(image: Image.Image, target_px: int, unit_px: int, offset: Offset | None = None) -> Image.Image:
    """`image` in RGB at the size that `fitted_size` gives: scaled to cover it, then cropped.

    `offset`: see `resize_to_cover`.
    """
    return resize_to_cover(to_rgb(image), fitted_size(image.width, image.height, target_px, unit_px), offset)


def with_colors_of(reference: Image.Image, image: Image.Image,
                   levels: int = COLOR_FIX_LEVELS) -> Image.Image:
    """`image` with its own details and the low frequencies, so the colours, of `reference`.

    The wavelet colour fix of StableSR (arXiv 2305.07015). Low frequencies are what is left after
    `levels` blurs, each twice as wide as the one before; StableSR has five, which is the most. The
    two sizes may differ.
    """
    import numpy

    if reference.size != image.size:
        reference = reference.resize(image.size, Image.Resampling.BICUBIC)
    own, wanted = numpy.asarray(to_rgb(image)), numpy.asarray(to_rgb(reference))
    fixed = numpy.empty_like(own)
    for top in range(0, len(own), COLOR_FIX_BAND):  # a whole photo in float32 would take gigabytes
        above = max(0, top - COLOR_FIX_REACH)
        rows = slice(above, top + COLOR_FIX_BAND + COLOR_FIX_REACH)
        band, target = own[rows].astype(numpy.float32), wanted[rows].astype(numpy.float32)
        band = band - _low_frequencies(band, levels) + _low_frequencies(target, levels)
        band = band[top - above:top - above + COLOR_FIX_BAND]
        fixed[top:top + COLOR_FIX_BAND] = band.round().clip(0, 255)
    return Image.fromarray(fixed)


def _low_frequencies(values: numpy.ndarray, levels: int) -> numpy.ndarray:
    """Blur (H, W, 3) float32 with (1, 2, 1) / 4 on both axes, `levels` times.

    The taps are 1, 2, 4 ... px apart; outside, the pixels of the edge repeat.
    """
    import cv2
    import numpy

    for level in range(levels):
        kernel = numpy.zeros(2 ** (level + 1) + 1, dtype=numpy.float32)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        values = cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return values
