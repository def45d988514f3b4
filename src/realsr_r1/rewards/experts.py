"""Visual experts: image-quality metrics turned into scores from 0 to 1, known by name, or your own.

An expert is any object with `name: str`, `needs_hq: bool` and
`score(images, hq) -> list of floats`. `images` are RGB PIL images of one size; `hq` are their
references at the same size, or None where `needs_hq` is false. A higher score is better. Your own
expert is named `package.module:factory`. `factory(device)` returns the expert. The factory has the
attribute `needs_hq` too (as a class does), so that a dataset without references is refused before
training. This module knows pictures and metrics; generation.py decides which picture of a
completion is scored.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from realsr_r1.core.errors import UserError, is_disk_full
from realsr_r1.core.images import resize_to_cover, to_pixels, to_rgb
from realsr_r1.core.import_named import import_named

# The four experts of the published code; all of them download weights.
DEFAULT_EXPERTS = ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")


class Expert(Protocol):
    """What an expert must have; the top of this file explains it."""

    name: str
    needs_hq: bool

    def score(self, images: list[Image.Image], hq: list[Image.Image] | None) -> Sequence[float]: ...


@dataclass(frozen=True)
class Scoring:
    """How a metric of pyiqa becomes an expert.

    `worst`, `best`: the values that become 0 and 1; values beyond them are clamped. `min_side`: in
    px; smaller images are enlarged to it, because the metric's windows or strides need that.
    `one_by_one`: whether images are scored one after the other because a batch is slower. `on_cpu`:
    whether the metric runs on the CPU even where the others run on a GPU.
    """

    worst: float
    best: float
    min_side: int
    needs_hq: bool = False
    downloads: bool = True
    one_by_one: bool = False
    on_cpu: bool = False


# PIQE judges blocks of 16x16 px, and its values lie between 0 (best) and 100 (worst) (pyiqa's
# `score_range`). We measured it on photos of 48 px, which have nine blocks. Flat and strongly
# blurred images get 100, and so does every image of one colour; a black one gives NaN. Noise of
# sigma 60 gives 60 to 80, and a clean photo 10 to 90, 45 on average. Noise of sigma 10 and mild
# JPEG often get a *better* value than the clean photo, so PIQE alone rewards light grain: use it
# together with SSIM. PIQE runs on the CPU because it computes variances as differences of large
# squares, which need full float32; on a GPU, pyiqa lets convolutions round to TF32.
# pyiqa's SSIM unfolds the batch into 121 float64 copies. On a CPU, 64 images of 48 px take 1.5 ms
# each one by one, and 6 to 12 ms each in one batch; at 512 px a batch would take gigabytes.
PYIQA_EXPERTS = {
    "topiq_nr": Scoring(worst=0, best=1, min_side=32),
    "musiq": Scoring(worst=0, best=100, min_side=32),
    "maniqa-pipal": Scoring(worst=0, best=1, min_side=32),
    "clipiqa": Scoring(worst=0, best=1, min_side=32),
    "piqe": Scoring(worst=100, best=0, min_side=16, downloads=False, on_cpu=True),
    "ssim": Scoring(worst=0, best=1, min_side=11, needs_hq=True, downloads=False, one_by_one=True),
}


class MetricExpert:
    """One of `PYIQA_EXPERTS` on `device`.

    Raises `UserError` when it can't be made, most often because its weights are missing.
    """

    def __init__(self, name: str, device: str):
        self.name = name
        self.spec = PYIQA_EXPERTS[name]
        self.needs_hq = self.spec.needs_hq
        self._metric = _create_metric(name, "cpu" if self.spec.on_cpu else device)

    def score(self, images: list[Image.Image], hq: list[Image.Image] | None) -> list[float]:
        """Score `images` (RGB, one size) from 0 to 1, without gradients.

        A score is NaN where the metric gives no number.
        """
        import torch

        size = 1 if self.spec.one_by_one else len(images)
        values: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(images), size):
                batches = [self._pixels(group[start:start + size]) for group in (images, hq)
                           if group is not None]
                values += self._metric(*batches).flatten().tolist()
        return [(value - self.spec.worst) / (self.spec.best - self.spec.worst) for value in values]

    def _pixels(self, images: list[Image.Image]) -> Any:
        """Turn RGB images of one size into pixels (B, 3, H, W) in [0, 1].

        Images below the metric's smallest side are enlarged to it.
        """
        width, height = images[0].size
        scale = self.spec.min_side / min(width, height)
        if scale > 1:
            size = math.ceil(width * scale), math.ceil(height * scale)
            images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        return to_pixels(images).add(1).div(2)


def _create_metric(name: str, device: str) -> Callable[..., Any]:
    import pyiqa
    import torch

    try:
        return pyiqa.create_metric(name, device=torch.device(device))
    # Each downloader has errors of its own: URLError, HfHubHTTPError, httpx's, unpickling errors.
    except Exception as error:
        if is_disk_full(error) or not PYIQA_EXPERTS[name].downloads:
            raise
        offline = ", ".join(known for known, metric in PYIQA_EXPERTS.items() if not metric.downloads)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"expert {name!r} could not be loaded ({type(error).__name__}: {reason}); it "
                        f"downloads its weights on first use, so run once with internet, or choose experts "
                        f"that need none: {offline}"
                        ) from error


def create_experts(names: Sequence[str], device: str = "cpu") -> list[Expert]:
    """Return the experts of these names; on each device an expert is made once and then kept.

    Raises `UserError` for an unknown name, and lists the known ones.
    """
    if not names:
        raise UserError("no expert given for the generation reward; known ones are "
                        f"{', '.join(PYIQA_EXPERTS)}")
    for name in names:  # check all names before the first download
        if name not in PYIQA_EXPERTS:
            _custom_factory(name)
    return [_create_expert(name, str(device)) for name in names]


@functools.cache
def _create_expert(name: str, device: str) -> Expert:
    if name in PYIQA_EXPERTS:
        return MetricExpert(name, device)
    expert = _custom_factory(name)(device)
    missing = [field for field in ("name", "needs_hq", "score") if not hasattr(expert, field)]
    if missing:
        raise UserError(f"expert {name!r}: what its factory returns has no {', '.join(missing)}")
    return expert


def expert_needs_hq(name: str) -> bool:
    """Whether the expert `name` needs the HQ image; the expert isn't made for this.

    Raises `UserError` for an unknown name.
    """
    if name in PYIQA_EXPERTS:
        return PYIQA_EXPERTS[name].needs_hq
    return bool(getattr(_custom_factory(name), "needs_hq", False))


def _custom_factory(name: str) -> Callable[[str], Expert]:
    return import_named(name, "expert", PYIQA_EXPERTS)


def score_images(expert: Expert, images: Sequence[Image.Image],
                 hq: Sequence[Image.Image] | None = None) -> list[float]:
    """Score images of any sizes from 0 to 1, with one call of the expert for each size.

    `hq`: references, needed if `expert.needs_hq`. Values outside 0..1 are clamped. NaN counts as 0
    and gives a warning: a policy must not earn anything by images that the metric can't judge
    (an all black one for PIQE).
    """
    if expert.needs_hq:
        if hq is None:
            raise ValueError(f"expert {expert.name!r} needs the HQ images")
        pairs = [_comparable(to_rgb(image), to_rgb(reference))
                 for image, reference in zip(images, hq, strict=True)]
    else:
        pairs = [(to_rgb(image), None) for image in images]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (image, _) in enumerate(pairs):
        groups.setdefault(image.size, []).append(index)
    scores = [0.0] * len(images)
    for indices in groups.values():
        references = [pairs[index][1] for index in indices] if expert.needs_hq else None
        values = expert.score([pairs[index][0] for index in indices], references)
        for index, value in zip(indices, values, strict=True):
            if math.isnan(value):
                warnings.warn(f"expert {expert.name!r} gave NaN for an image; it counts as 0", stacklevel=2)
                continue
            scores[index] = min(max(float(value), 0.0), 1.0)
    return scores


def _comparable(image: Image.Image, hq: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return `image` and `hq` at one size, with at least as many pixels as `hq` has.

    A smaller image is enlarged and keeps its shape. At its own size fewer details could be wrong,
    and a policy that is free to choose sizes would learn to draw small images (measured: 16 px
    instead of 48 raised SSIM from 0.56 to 0.95). Then `hq` is scaled to cover the image and
    cropped in the middle, as the chain's own images are made.
    """
    scale = math.sqrt(hq.width * hq.height / (image.width * image.height))
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)),
                             Image.Resampling.BICUBIC)
    return image, hq if hq.size == image.size else resize_to_cover(hq, image.size)
