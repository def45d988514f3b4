"""Crops of a photo: regions of the splits, boxes, HQ and LQ images, and records.

Knows one photo at a time and writes nothing; data.building.jobs writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.core.images import resize_to_cover
from realsr_r1.data.degradation.config import DegradationConfig
from realsr_r1.data.degradation.degrade import degrade, random_for

# Left, top, right and bottom in the photo's pixels; right and bottom are outside the box.
Box = tuple[int, int, int, int]

RESERVED_SHARE = 0.28  # the share of the photo's longer side that is kept for test_crops
JPEG_BLOCK = 8  # px
SHRUNK_AT_MOST = 4  # how many times larger than its crop a crop is that is shrunk after it is degraded


@dataclass(frozen=True)
class CropPlan:
    """How crops are cut.

    `crop_px`: the side of the HQ image in px. `seed`: the seed of every draw. `scales`: the
    smallest and the largest side of a crop as a share of the photo's shorter side; it is drawn
    log-uniformly and clipped to what fits. With None a crop is the largest square in the middle of
    the region. `reserve`: whether to keep a strip for test_crops. `degradation`: None where the
    photos are degraded already, so that crops have no original and no label. `question`: what a
    record asks (`problem`).
    """

    crop_px: int
    scales: tuple[float, float] | None
    reserve: bool
    seed: int
    degradation: DegradationConfig | None
    question: str = ChainSpec.published().question


@dataclass(frozen=True)
class Crop:
    """A crop: its record, and the content of its files.

    `hq`: None where there is no original. `parameters`: every value drawn for the degradation; None
    where none was made.
    """

    record: dict[str, Any]
    hq: Image.Image | None
    lq: Image.Image
    parameters: dict[str, Any] | None


def split_regions(size: tuple[int, int], photo: str, plan: CropPlan) -> dict[str, Box]:
    """Return the part of a photo of `size` (width, height) that each split may crop from.

    `train` and `test_crops` share no pixel: with `plan.reserve`, a strip at one end of the longer
    side is kept for `test_crops`, and the photo's name decides which end. `test` may use all of the
    photo. Raises `UserError` where a region can't hold a crop.
    """
    width, height = size
    longer, shorter = max(size), min(size)
    strip = max(math.ceil(RESERVED_SHARE * longer), plan.crop_px) if plan.reserve else 0
    if shorter < plan.crop_px or longer - strip < plan.crop_px:
        beside = (f" beside the reserved strip of {strip} px"
                  if plan.reserve and shorter >= plan.crop_px else "")
        raise UserError(f"{width}x{height} px has no room for a crop of {plan.crop_px} px{beside}")
    at_start = bool(random_for(plan.seed, f"{photo}/reserved").random() < 0.5)
    kept, rest = ((0, strip), (strip, longer)) if at_start else ((longer - strip, longer),
                                                                 (0, longer - strip))

    def box(span: tuple[int, int]) -> Box:
        return (span[0], 0, span[1], height) if width >= height else (0, span[0], width, span[1])

    return {"train": box(rest), "test_crops": box(kept), "test": (0, 0, width, height)}


def draw_box(region: Box, shorter_side: int, key: str, plan: CropPlan) -> Box:
    """Draw a square inside `region`, with sides of at least `plan.crop_px`.

    `key`: names the crop, for the random numbers.
    """
    left, top, right, bottom = region
    largest = min(right - left, bottom - top)
    if plan.scales is None:
        x, y = left + (right - left - largest) // 2, top + (bottom - top - largest) // 2
        return x, y, x + largest, y + largest
    rng = random_for(plan.seed, f"{key}/box")
    share = math.exp(rng.uniform(math.log(plan.scales[0]), math.log(plan.scales[1])))
    side = min(max(round(share * shorter_side), plan.crop_px), largest)
    x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
    return x, y, x + side, y + side


def cut(photo: Image.Image, box: Box, crop_px: int) -> Image.Image:
    """Return the crop at `crop_px` x `crop_px`.

    It is cut out before it is resized: a resize with `box=` would read pixels beside the box.
    """
    crop = photo.crop(box)
    if crop.size == (crop_px, crop_px):
        return crop
    return crop.resize((crop_px, crop_px), Image.Resampling.LANCZOS, reducing_gap=3.0)


@dataclass(frozen=True)
class Surroundings:
    """An HQ crop with some of the photo around it.

    `image`: the crop and its margins, at the crop's scale. `left`, `top`: where the crop begins in
    it, in px. Degraded as a whole and then cut, a crop looks like a piece of a larger degraded
    photo: its edges are no edges of the picture, and JPEG's blocks begin anywhere in it. Real-
    ESRGAN degrades whole crops (arXiv 2107.10833), whose edges matter little at 512 px.
    """

    image: Image.Image
    left: int
    top: int


def surroundings(photo: Image.Image, region: Box, box: Box, key: str, plan: CropPlan) -> Surroundings:
    """Return the crop at `box` with margins of up to `plan.degradation.margin` px on each side.

    The margins at the left and at the top are shorter by 0 to 7 px, drawn for the crop named `key`.
    All of them end where `region` ends, so no pixel of another split is read.
    """
    scale, px = plan.degradation.scale, plan.crop_px
    unit = (box[2] - box[0]) / px  # photo pixels for each pixel of the crop
    rng = random_for(plan.seed, f"{key}/margin")
    wanted = [plan.degradation.margin - int(rng.integers(JPEG_BLOCK)) for _ in range(2)]
    wanted += [plan.degradation.margin] * 2
    free = [box[0] - region[0], box[1] - region[1], region[2] - box[2], region[3] - box[3]]
    left, top, right, bottom = (max(0, min(some, int(room / unit))) // scale * scale
                                for some, room in zip(wanted, free, strict=True))
    exact = (box[0] - left * unit, box[1] - top * unit, box[2] + right * unit, box[3] + bottom * unit)
    x, y = math.floor(max(exact[0], region[0])), math.floor(max(exact[1], region[1]))
    # Cut out first: a resize with `box=` reads pixels beside the box.
    piece = photo.crop((x, y, min(math.ceil(exact[2]), region[2]), min(math.ceil(exact[3]), region[3])))
    inside = (max(0.0, exact[0] - x), max(0.0, exact[1] - y), min(exact[2] - x, piece.width),
              min(exact[3] - y, piece.height))
    image = piece.resize((left + px + right, top + px + bottom), Image.Resampling.LANCZOS, inside,
                         reducing_gap=3.0)
    return Surroundings(image, left, top)


@dataclass(frozen=True)
class Pair:
    """A crop and what it was degraded to, with the labels and every value drawn."""

    hq: Image.Image
    lq: Image.Image
    labels: list[str]
    parameters: dict[str, Any]


def degraded_pair(photo: Image.Image, region: Box, box: Box, key: str, plan: CropPlan) -> Pair:
    """Return the crop at `box` of `region`, degraded as the plan says; `key` decides all draws.

    The plan has a `degradation`.
    """
    config = plan.degradation
    px, lq_px = plan.crop_px, plan.crop_px // config.scale
    if (config.shrunk_probability and box[2] - box[0] >= 2 * px
            and random_for(plan.seed, f"{key}/shrunk").random() < config.shrunk_probability):
        return shrunk(photo, box, key, plan)
    if not config.margin:
        hq = cut(photo, box, px)
        degraded = degrade(hq, plan.seed, key, config)
        return Pair(hq, degraded.image, degraded.labels, degraded.parameters)
    around = surroundings(photo, region, box, key, plan)
    degraded = degrade(around.image, plan.seed, key, config)
    hq = _cut_out(around.image, around.left, around.top, px)
    lq = _cut_out(degraded.image, around.left // config.scale, around.top // config.scale, lq_px)
    return Pair(hq, lq, degraded.labels, degraded.parameters)


def shrunk(photo: Image.Image, box: Box, key: str, plan: CropPlan) -> Pair:
    """Return a crop that is degraded at up to `SHRUNK_AT_MOST` times its size, and then scaled down.

    So a model learns what is left of a degradation when it looks at a whole photo.
    """
    px, config = plan.crop_px, plan.degradation
    large = cut(photo, box, min(box[2] - box[0], SHRUNK_AT_MOST * px))
    degraded = degrade(large, plan.seed, key, config)
    lq_px = max(1, px // config.scale)
    return Pair(resize_to_cover(large, (px, px)), resize_to_cover(degraded.image, (lq_px, lq_px)),
                degraded.labels, degraded.parameters)


def make_crops(photo: Image.Image, name: str, split: str, numbers: range, plan: CropPlan) -> Iterator[Crop]:
    """Yield the crops of `split` with these numbers.

    `name`: the photo's name, with / between folders; files are named after it. Raises `UserError`
    where the photo is too small.
    """
    import cv2

    cv2.setNumThreads(1)  # the work is parallel over photos already
    region = split_regions(photo.size, name, plan)[split]
    folder = PurePosixPath("images", split, name).with_suffix("")
    for number in numbers:
        key = f"{name}/{split}/{number}"
        box = draw_box(region, min(photo.size), key, plan)
        record = {"image_path": f"{folder}/{number:05d}-lq.png", "problem": plan.question}
        place = {"source": name, "crop": list(box)}
        if plan.degradation is None:
            yield Crop({**record, **place}, None, cut(photo, box, plan.crop_px), None)
            continue
        pair = degraded_pair(photo, region, box, key, plan)
        record |= {"hq_path": f"{folder}/{number:05d}-hq.png", "degradation": pair.labels}
        yield Crop({**record, **place}, pair.hq, pair.lq, pair.parameters)


def _cut_out(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return image.crop((left, top, left + side, top + side))
