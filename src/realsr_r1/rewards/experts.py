"""Visual experts: image-quality metrics turned into scores from 0 to 1, known by name, or your own.

An expert is any object with `name: str`, `needs_hq: bool` and
`score(images, hq) -> list of floats`. `images` are RGB PIL images of one size; `hq` are their
references at the same size, or None where `needs_hq` is false. A higher score is better. Experts
are named `METRIC[:WEIGHT[:WORST:BEST]]`, with a metric of pyiqa (metric_experts.py), or
`package.module:name[:WEIGHT]` for your own. Your own is a function `f(images)` or `f(images, hq)`
that returns the scores, or a factory: `factory(device)` returns the expert. The factory has the
attribute `needs_hq` too (as a class does), so that a dataset without references is refused before
training; a function needs them where `hq` has no default. Your own expert judges one small picture
when it is made, so that its faults are seen before anything long starts. This module knows pictures
and names; generation.py decides which picture of a completion is scored.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import resize_to_cover, to_rgb
from realsr_r1.core.import_named import import_named, tried
from realsr_r1.rewards.metric_experts import (
    OFFLINE,
    MetricExpert,
    lower_is_better,
    metric_names,
    needs_hq,
    usual_limits,
)
from realsr_r1.rewards.settings import DEFAULT_EXPERTS

TRIAL_PX = 64  # side of the picture that an expert of one's own judges when it is made


class Expert(Protocol):
    """What an expert must have; the top of this file explains it."""

    name: str
    needs_hq: bool

    def score(self, images: list[Image.Image], hq: list[Image.Image] | None) -> Sequence[float]: ...


@dataclass(frozen=True)
class ExpertChoice:
    """An expert as a flag names it.

    `name`: a metric of pyiqa or `package.module:factory`. `weight`: in the mean over experts, above
    0. `limits`: the metric's values that become 0 and 1; None for your own.
    """

    name: str
    weight: float = 1.0
    limits: tuple[float, float] | None = None


def parse_expert(text: str) -> ExpertChoice:
    """Read `METRIC[:WEIGHT[:WORST:BEST]]` or `package.module:factory[:WEIGHT]`.

    Raises `UserError` for an unknown name, with the near and the usual ones, for a weight that is
    not above 0, and for a range that goes against the metric's direction.
    """
    name, *numbers = text.split(":")
    if name in metric_names():
        if len(numbers) not in (0, 1, 3):
            raise UserError(f"expert {text!r} must be {name}, {name}:WEIGHT or {name}:WEIGHT:WORST:BEST")
        limits = _limits(name, text, numbers[1:]) if len(numbers) == 3 else usual_limits(name)
        return ExpertChoice(name, _weight(text, numbers[:1]), limits)
    name, numbers = ":".join(text.split(":")[:2]), numbers[1:]
    _custom(name)
    if len(numbers) > 1:
        raise UserError(f"expert {text!r} must be {name} or {name}:WEIGHT, for its scores are from 0 to "
                        "1 already")
    return ExpertChoice(name, _weight(text, numbers))


def _weight(text: str, given: Sequence[str]) -> float:
    weight = _number(given[0]) if given else 1.0
    if not 0 < weight < math.inf:
        raise UserError(f"expert {text!r}: the weight {given[0]!r} must be a number above 0")
    return weight


def _limits(name: str, text: str, given: Sequence[str]) -> tuple[float, float]:
    worst, best = map(_number, given)
    if not (math.isfinite(worst) and math.isfinite(best)) or worst == best:
        raise UserError(f"expert {text!r}: {given[0]!r} and {given[1]!r} must be two different numbers, the "
                        "values that score 0 and 1")
    if (best < worst) != lower_is_better(name):
        way = "lower" if lower_is_better(name) else "higher"
        raise UserError(f"expert {text!r} has the wrong direction: a {way} {name} is better, and "
                        "the worst value comes first")
    return worst, best


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def create_experts(names: Sequence[str], device: str = "cpu", weights: str | None = None) -> list[Expert]:
    """Return the experts of these names; on each device an expert is made once and then kept.

    `weights`: folder where weights are looked for (`expert_weights.Weights`). Raises
    `UserError` for an unknown name, and lists the usual ones.
    """
    if not names:
        raise UserError("no expert given for the generation reward; known ones are "
                        f"{', '.join((*DEFAULT_EXPERTS, *OFFLINE))}")
    choices = [parse_expert(name) for name in names]  # check all names before the first download
    return [_create_expert(choice.name, choice.limits, str(device), weights) for choice in choices]


@functools.cache
def _create_expert(name: str, limits: tuple[float, float] | None, device: str,
                   weights: str | None) -> Expert:
    if limits is not None:
        return MetricExpert(name, device, *limits, weights)
    own = _custom(name)
    if _is_plain_function(own):
        expert = FunctionExpert(own)
    else:
        expert = tried(f"expert {name!r}: its factory", lambda: own(device))
        missing = [field for field in ("name", "needs_hq", "score") if not hasattr(expert, field)]
        if missing:
            raise UserError(f"expert {name!r}: what its factory returns has no {', '.join(missing)} (a plain "
                            "function that judges pictures is called f(images) or f(images, hq))")
    picture = Image.linear_gradient("L").resize((TRIAL_PX, TRIAL_PX)).convert("RGB")
    scores = tried(f"expert {name!r}, given a list of one picture of {TRIAL_PX} px,",
                    lambda: expert.score([picture], [picture] if expert.needs_hq else None))
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError):
        values = []
    if len(values) != 1:
        raise UserError(f"expert {name!r}: given a list of one picture, it returned {scores!r:.80}; it must "
                        "return a list with a number for each picture")
    return expert


class FunctionExpert:
    """The expert that a plain function `f(images)` or `f(images, hq)` is; it needs `hq` without a default."""

    def __init__(self, function: Callable[..., Sequence[float]]):
        self.name, self._function = function.__name__, function
        self.needs_hq = _function_needs_hq(function)

    def score(self, images: list[Image.Image], hq: list[Image.Image] | None) -> Sequence[float]:
        return self._function(images, hq) if self.needs_hq else self._function(images)


def _is_plain_function(own: Callable[..., Any]) -> bool:
    return inspect.isfunction(own) and next(iter(inspect.signature(own).parameters), None) == "images"


def _function_needs_hq(function: Callable[..., Any]) -> bool:
    hq = inspect.signature(function).parameters.get("hq")
    return hq is not None and hq.default is inspect.Parameter.empty


def expert_weights(names: Sequence[str]) -> list[float]:
    """The weights of experts in their mean, in order; 1 where a name has none."""
    return [parse_expert(name).weight for name in names]


def expert_needs_hq(name: str) -> bool:
    """Whether the expert `name` needs the HQ image; the expert isn't made for this.

    Raises `UserError` for an unknown name.
    """
    choice = parse_expert(name)
    if choice.limits is not None:
        return needs_hq(choice.name)
    own = _custom(choice.name)
    return _function_needs_hq(own) if _is_plain_function(own) else bool(getattr(own, "needs_hq", False))


def _custom(name: str) -> Callable[..., Any]:
    return import_named(name, "expert", (*DEFAULT_EXPERTS, *OFFLINE), metric_names())


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
