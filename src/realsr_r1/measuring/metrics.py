"""Image-quality metrics by name: their labels, which way is better, and how pyiqa computes them.

Knows images, no folders and no files of results. A metric whose weights can't be had is reported
and never stops the others.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from realsr_r1.core.errors import UserError, is_disk_full, meant
from realsr_r1.core.images import to_pixels
from realsr_r1.core.texts import split_list
from realsr_r1.rewards.metric_experts import NO_EXPERTS, lower_is_better, metric_names, needs_hq

FID_FEATURES = 2048  # width of Inception's features; with fewer images their covariance is singular


@dataclass(frozen=True)
class Metric:
    """One metric.

    `kind`: "pair" compares an image with the original, "single" needs no original, "set" scores a
    whole set at once. `on_cpu`: whether it runs on the CPU even where the others run on a GPU.
    `in_tiles`: whether it is computed in tiles of a large image (`tiles_of`), for its memory.
    `channel`, `rounding`, `note`: what it looks at, what is rounded before, and what else its value
    depends on, in words; read in the source of pyiqa 0.1.16. `batched`: whether a batch gives each
    image the value that it has alone, and is not slower.
    """

    label: str
    kind: Literal["pair", "single", "set"]
    lower_better: bool
    decimals: int
    options: dict[str, Any] = field(default_factory=dict)
    unit: str = ""
    on_cpu: bool = False
    in_tiles: bool = True
    channel: str = "RGB"
    rounding: str = "none"
    note: str = ""
    batched: bool = True


AS_PYIQA = "as pyiqa has it by default"  # of a metric of pyiqa that isn't in `METRICS`
_Y, _WHOLE_STEPS = "Y of YCbCr (BT.601, 16 to 235)", "Y to whole steps of 255"
_LUMA = {"test_y_channel": True, "color_space": "ycbcr"}  # Y of YCbCr (BT.601, 16..235), as usual in papers

# The ten metrics of the RealSR-R1 paper, its TOPIQ in two variants (the released script uses SPAQ's),
# then some that need no weights. PSNR is the field's by pyiqa, its 1e-8 included: so an identical pair
# has 80 dB, and the value is always finite.
METRICS = {
    "psnr": Metric("PSNR (Y)", "pair", False, 2, _LUMA, unit="dB", in_tiles=False, channel=_Y,
                   note="1e-8 is added to the mean squared error of values in [0, 1]: above 43.6 dB it is "
                        "more than 0.001 dB below the formula's value, and equal images have 80 dB"),
    # Its batch takes 121 copies of the images, and is slower on a CPU (rewards/metric_experts.py).
    "ssim": Metric("SSIM (Y)", "pair", False, 4, _LUMA, in_tiles=False, channel=_Y, rounding=_WHOLE_STEPS,
                   batched=False),
    "lpips": Metric("LPIPS", "pair", True, 4),
    "dists": Metric("DISTS", "pair", True, 4),
    "fid": Metric("FID", "set", True, 2),
    # Its fit drops flat blocks, of which each image may have another number.
    "niqe": Metric("NIQE", "single", True, 3, channel="Y of YIQ", rounding=_WHOLE_STEPS, batched=False),
    "musiq": Metric("MUSIQ", "single", False, 2),
    # An image's 20 crops are a batch already.
    "maniqa-pipal": Metric("MANIQA (PIPAL)", "single", False, 4, batched=False),
    "clipiqa": Metric("CLIPIQA", "single", False, 4),
    "topiq_nr": Metric("TOPIQ", "single", False, 4),
    "topiq_nr-spaq": Metric("TOPIQ (SPAQ)", "single", False, 4),
    "piqe": Metric("PIQE", "single", True, 2, on_cpu=True, channel="Y of YIQ",  # see rewards/experts.py
                   rounding="Y to whole steps, 255 at its brightest pixel"),
    "fsim": Metric("FSIM", "pair", False, 4, channel="YIQ"),
    "gmsd": Metric("GMSD", "pair", True, 4, in_tiles=False, channel="Y of YIQ", rounding=_WHOLE_STEPS),
    "vsi": Metric("VSI", "pair", False, 4, channel="LMN"),
}
# The metrics that pyiqa computes without weights.
OFFLINE_METRICS = ("psnr", "ssim", "fsim", "gmsd", "vsi", "piqe")
# An image with a longer side than this has tiles of at most this side: FSIM of 9 megapixels takes
# more than 8 GB as a whole.
LARGEST_TILE = 1448  # px; 2.1 megapixels
BASELINE_METRICS = ("psnr", "ssim")  # those that are also given for a flat image of the mean colour


def metric_of(name: str) -> Metric:
    """Return what is known of a metric: one of `METRICS`, or another one of pyiqa that judges one image."""
    if name in METRICS:
        return METRICS[name]
    return Metric(name, "pair" if needs_hq(name) else "single", lower_is_better(name), 4, channel=AS_PYIQA,
                  rounding=AS_PYIQA, batched=False)


def described(name: str, border: int) -> dict[str, Any]:
    """Return how a metric is shown and how it was computed, for the result.

    `border`: px that were cut off at each side before.
    """
    import pyiqa

    metric = metric_of(name)
    return {"label": metric.label, "unit": metric.unit, "decimals": metric.decimals,
            "lower_better": metric.lower_better, "channel": metric.channel, "rounding": metric.rounding,
            "note": metric.note, "border": border, "version": f"pyiqa {pyiqa.__version__}, {name}",
            "options": metric.options}


def parse_metrics(text: str | None, has_originals: bool = True, given_by: str = "--metrics",
                  way: str = "give --gt") -> list[str]:
    """Return names without repeats, from `"psnr,ssim"` or `"all"`; None stands for the offline ones.

    `given_by`: where the text stands; `way`: how to give originals; both for messages. Without
    originals those are left out that compare with one. Raises `UserError` for an unknown name, with the
    near and the usual ones, and for one that can't be had without originals.
    """
    given = OFFLINE_METRICS if text is None else split_list(text)
    names = list(dict.fromkeys(name.lower() for name in given))
    names = list(METRICS) if names == ["all"] else names
    others = [name for name in names if name not in METRICS]
    of_pyiqa = {*metric_names()} - NO_EXPERTS.keys() if others else set()  # its import takes a second
    spelt = {name.lower(): name for name in of_pyiqa}
    names, others = ([spelt.get(name, name) for name in some] for some in (names, others))
    unknown = [name for name in others if name not in of_pyiqa]
    if unknown or not names:
        near = meant(unknown[0], sorted({*METRICS, *of_pyiqa})) if unknown else ""
        raise UserError(f"{given_by}: unknown metric {', '.join(map(repr, unknown)) or repr(text)}"
                        f"{near}; known are {', '.join(METRICS)}, any "
                        "other metric of pyiqa that judges one image, or all")
    if has_originals:
        return names
    comparing = [name for name in names if metric_of(name).kind != "single"]
    if text is not None and text.lower() != "all" and comparing:
        raise UserError(f"{given_by} {comparing[0]} compares with the original: {way}, or leave it out")
    return [name for name in names if name not in comparing]


class Scorer:
    """A loaded metric: `scores` is for images, `score_set` for FID. `device`: where it runs."""

    def __init__(self, name: str, network: Callable[..., Any], device: str):
        self.name = name
        self.device = device
        self._network = network

    def scores(self, images: Sequence[Image.Image], originals: Sequence[Image.Image]) -> list[float | None]:
        """Return the metric of each image, or None where it isn't defined.

        The images are RGB, and all of one size, which is the originals'. A metric isn't defined for
        images smaller than its window (SSIM: 11 px, NIQE: 96 px) and for some flat ones. Of a large
        image most metrics are the mean over its tiles, weighted by their pixels.
        """
        if not metric_of(self.name).in_tiles:
            return self._scores(images, originals)
        totals = [(0.0, 0)] * len(images)  # sum of value x pixels, pixels
        for box in tiles_of(images[0].size):
            values = self._scores(*([image.crop(box) for image in side] for side in (images, originals)))
            area = (box[2] - box[0]) * (box[3] - box[1])
            totals = [(total, pixels) if value is None else (total + value * area, pixels + area)
                      for value, (total, pixels) in zip(values, totals, strict=True)]
        return [total / pixels if pixels else None for total, pixels in totals]

    def _scores(self, images: Sequence[Image.Image], originals: Sequence[Image.Image]) -> list[float | None]:
        import math

        import torch

        if len(images) > 1 and not metric_of(self.name).batched:
            return self._one_by_one(images, originals)
        sides = [images, originals] if metric_of(self.name).kind == "pair" else [images]
        pixels = [to_pixels(list(side)).add(1).div(2).clamp(0, 1).to(self.device) for side in sides]
        try:
            values = self._network(*pixels).flatten().tolist()
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            if len(images) > 1:  # one of them may be flat, or the memory too small
                return self._one_by_one(images, originals)
            is_large = min(images[0].size) >= 256  # for all metrics, so the fault is another one
            if is_large or isinstance(error, torch.OutOfMemoryError):
                raise
            return [None]
        return [value if math.isfinite(value) else None for value in values]

    def _one_by_one(self, images: Sequence[Image.Image],
                    originals: Sequence[Image.Image]) -> list[float | None]:
        return [value for pair in zip(images, originals, strict=True)
                for value in self._scores(*([one] for one in pair))]

    def score_set(self, images: Iterable[Image.Image], originals: Iterable[Image.Image]) -> float | None:
        """Return the FID of two sets, or None where it isn't defined (fewer than two images)."""
        import math

        with tempfile.TemporaryDirectory() as work:
            folders = []
            for side, items in (("images", images), ("originals", originals)):
                folder = Path(work) / side
                folder.mkdir()
                count = 0
                for count, item in enumerate(items, start=1):
                    item.save(folder / f"{count:06d}.png")
                if count < 2:
                    return None
                folders.append(str(folder))
            value = float(self._network(*folders, num_workers=0, verbose=False))
        return value if math.isfinite(value) else None


def tiles_of(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return the boxes of an image's tiles, which don't overlap: one, unless the image is large."""
    edges = []
    for side in size:
        count = -(-side // LARGEST_TILE)
        edges.append([side * number // count for number in range(count + 1)])
    across, down = (list(zip(one, one[1:], strict=False)) for one in edges)
    return [(left, top, right, bottom) for top, bottom in down for left, right in across]


def load_metrics(names: Iterable[str], device: str) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Load metrics by name -> (scorers, reasons why the others can't be had)."""
    import pyiqa

    scorers: dict[str, Scorer] = {}
    unavailable: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            place = "cpu" if metric_of(name).on_cpu else device
            try:
                network = pyiqa.create_metric(name, device=place, **metric_of(name).options)
            except OSError as error:  # no network, or no such file on the server
                if is_disk_full(error):
                    raise
                unavailable[name] = f"weights not available: {_first_line(error)}"
                if not isinstance(error, FileNotFoundError):
                    stack.enter_context(_hub_offline())
            # These are eleven networks by other people, and one that fails must not stop the rest.
            except Exception as error:
                unavailable[name] = f"can't be loaded: {_first_line(error)}"
            else:
                scorers[name] = Scorer(name, network, place)
    return scorers, unavailable


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Make the hub's client look in its cache only, once a server wasn't reached.

    Its retries take 50 s for each metric.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "reason", error)).strip().splitlines()
    return lines[0].partition(". ")[0][:120] if lines else type(error).__name__
