"""Metrics of pyiqa as visual experts: values become scores from 0 to 1, where 1 is best.

Whether a metric needs the HQ image, which way is better, and its range are what pyiqa says
(`pyiqa.default_model_configs`). This file adds only what it doesn't say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from realsr_r1.core.errors import UserError, is_disk_full
from realsr_r1.core.images import to_pixels
from realsr_r1.rewards.expert_weights import Weights

# Metrics that pyiqa computes without weights (each was run here without internet).
OFFLINE = ("piqe", "ssim", "psnr", "fsim", "gmsd", "vsi", "vif", "ms_ssim", "cw_ssim", "nlpd", "mad", "psnry",
           "ssimc", "entropy")
# Metrics that can't score one image of a completion.
NO_EXPERTS = {
    **dict.fromkeys(("fid", "sfid", "fid_dinov2", "inception_score"), "it judges a whole set of images"),
    "clipscore": "it compares with a text", "fgresq_pair": "it gives several values"}
# pyiqa gives MAD no upper end. White noise in the place of a photo has 243 to 312 at 64 to 256 px,
# measured on two photos.
OWN_RANGES = {"mad": (0.0, 250.0)}


@dataclass(frozen=True)
class Needs:
    """How a metric must be run.

    `min_side`: in px; smaller images (and their HQ images) are enlarged to it, bicubically, because
    the metric's windows or strides need that. The value of an enlarged image is good for comparing
    images of that size, and differs from the metric's value at its own size. `one_by_one`: whether
    images are scored one after the other because a batch is slower. `on_cpu`: whether the metric
    runs on the CPU even where the others run on a GPU.
    """

    min_side: int = 32
    one_by_one: bool = False
    on_cpu: bool = False


# PIQE judges blocks of 16x16 px, and its values lie between 0 (best) and 100 (worst). We measured
# it on photos of 48 px, which have nine blocks. Flat and strongly blurred images get 100, and so
# does every image of one colour; a black one gives NaN. Noise of sigma 60 gives 60 to 80, and a
# clean photo 10 to 90, 45 on average. Noise of sigma 10 and mild JPEG often get a *better* value
# than the clean photo, so PIQE alone rewards light grain: use it together with SSIM. PIQE and VIF
# run on the CPU because they compute variances as differences of large squares, which need full
# float32; on a GPU, pyiqa lets convolutions round to TF32.
# pyiqa's SSIM unfolds the batch into 121 float64 copies. On a CPU, 64 images of 48 px take 1.5 ms
# each one by one, and 6 to 12 ms each in one batch; at 512 px a batch would take gigabytes.
# MS-SSIM halves the image four times and then needs its window of 11 px: (11 - 1) * 2^4 + 1 = 161.
# CW-SSIM's pyramid of four levels needs 64 px, VIF's four scales 33, NIQE two blocks of 96 px. MAD
# sees a light blur less and less below 64 px, and at 24 px not at all. It is slow: on a CPU 0.15 s
# for an image of 64 px, 7 s at 256 px.
NEEDS = {
    "piqe": Needs(16, on_cpu=True), "ssim": Needs(11, one_by_one=True), "ssimc": Needs(11, one_by_one=True),
    "psnr": Needs(1), "psnry": Needs(1), "ms_ssim": Needs(161, one_by_one=True), "cw_ssim": Needs(64),
    "vif": Needs(33, on_cpu=True), "mad": Needs(64), "niqe": Needs(192), "niqe_matlab": Needs(192),
    "ilniqe": Needs(192)}


def metric_names() -> tuple[str, ...]:
    """The names of all metrics that pyiqa knows."""
    return tuple(_configs())


def needs_hq(name: str) -> bool:
    """Whether the metric compares with the HQ image."""
    return _configs()[name]["metric_mode"] == "FR"


def lower_is_better(name: str) -> bool:
    """Which way the metric's values go."""
    return bool(_configs()[name].get("lower_better", False))


def usual_limits(name: str) -> tuple[float, float]:
    """The values of a metric that become 0 and 1: the ends of pyiqa's range, the worst one first.

    A range with a "~" before an end holds by experience, not by definition, and scores are clamped.
    Raises `UserError` for a metric that pyiqa gives no range, and for one that judges no image.
    """
    if name in NO_EXPERTS:
        raise UserError(f"{name} can't be an expert: {NO_EXPERTS[name]}")
    said = str(_configs()[name].get("score_range"))
    try:
        low, high = OWN_RANGES.get(name) or (float(end.strip().lstrip("~")) for end in said.split(","))
    except ValueError as error:
        order = "BEST is below WORST" if lower_is_better(name) else "BEST is above WORST"
        raise UserError(f"expert {name!r} needs its range: pyiqa gives none ({said}); write "
                        f"{name}:WEIGHT:WORST:BEST, where {order}") from error
    return (high, low) if lower_is_better(name) else (low, high)


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return DEFAULT_CONFIGS


class MetricExpert:
    """A metric of pyiqa on `device`.

    `worst`, `best`: the values that become 0 and 1. `weights`: where its weights are. Raises
    `UserError` when it can't be made, most often because its weights are missing.
    """

    def __init__(self, name: str, device: str, worst: float, best: float, weights: str | None = None):
        self.name = name
        self.needs_hq = needs_hq(name)
        self.limits = worst, best
        self.needs = NEEDS.get(name, Needs())
        self._metric = _create_metric(name, "cpu" if self.needs.on_cpu else device, Weights(weights))

    def score(self, images: list[Image.Image], hq: list[Image.Image] | None) -> list[float]:
        """Score `images` (RGB, one size) from 0 to 1, without gradients.

        A score is NaN where the metric gives no number.
        """
        import torch

        size = 1 if self.needs.one_by_one else len(images)
        values: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(images), size):
                batches = [self._pixels(group[start:start + size]) for group in (images, hq)
                           if group is not None]
                values += self._metric(*batches).flatten().tolist()
        worst, best = self.limits
        return [(value - worst) / (best - worst) for value in values]

    def _pixels(self, images: list[Image.Image]) -> Any:
        """Turn RGB images of one size into pixels (B, 3, H, W) in [0, 1].

        Images below the metric's smallest side are enlarged to it.
        """
        width, height = images[0].size
        scale = self.needs.min_side / min(width, height)
        if scale > 1:
            size = math.ceil(width * scale), math.ceil(height * scale)
            images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        return to_pixels(images).add(1).div(2)


def _create_metric(name: str, device: str, weights: Weights) -> Callable[..., Any]:
    import pyiqa
    import torch

    try:
        with weights.in_use():
            return pyiqa.create_metric(name, device=torch.device(device))
    # Each downloader has errors of its own: URLError, HfHubHTTPError, httpx's, unpickling errors.
    except Exception as error:
        if is_disk_full(error) or name in OFFLINE:
            raise
        if isinstance(error, ImportError):
            raise UserError(f"expert {name!r} needs a package that isn't installed: {error}") from error
        raise UserError(f"expert {name!r} could not be loaded: {weights.fault(error)}, or choose experts "
                        f"that need none: {', '.join(OFFLINE)}") from error
