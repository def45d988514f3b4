"""The settings of the two-stage degradation: ranges, probabilities, defaults, reading from YAML.

The defaults are Real-ESRGAN's published numbers (arXiv 2107.10833). degrade.py draws values from
the ranges and applies them to pixels.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Json, Text

Range = tuple[float, float]

LARGEST = 10_000  # limit of every number here, far above any useful value
LARGEST_SCALE = 8  # LQ crops of fewer px have nothing left to restore
LARGEST_MARGIN = 256  # px
MOST = {"kernel_size": 101, "resize_range": 8.0}  # larger values would need too much memory
KERNEL_KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class StageConfig:
    """The settings of one stage.

    A range is (lowest, highest), and values are drawn from it uniformly. Probabilities lie
    in [0, 1].

    - `blur_probability`: that the stage blurs at all. `kernel_size`: in px, odd.
    - `sinc_probability`: that the blur is a sinc filter. Else its kind is drawn by
      `kernel_probabilities` (in the order of `KERNEL_KINDS`, with the sum 1).
    - `blur_sigma`: in px. `generalised_shape`, `plateau_shape`: exponents of these kernels.
    - `resize_probabilities`: of upsample, downsample and keep, with the sum 1. `resize_range`: the
      smallest and the largest factor.
    - `gaussian_probability`: that the noise is Gaussian; else it is Poisson noise.
    - `gaussian_sigma`: for values from 0 to 255. `poisson_scale`: a factor on the photon noise.
    - `grey_probability`: that all three channels get the same noise.
    - `jpeg_quality`: from 1 to 100.
    """

    blur_probability: float = 1.0
    kernel_size: tuple[int, int] = (7, 21)
    kernel_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_probability: float = 0.1
    blur_sigma: Range = (0.2, 3.0)
    generalised_shape: Range = (0.5, 4.0)
    plateau_shape: Range = (1.0, 2.0)
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_probability: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)


_SECOND_STAGE = StageConfig(blur_probability=0.8, blur_sigma=(0.2, 1.5), resize_probabilities=(0.3, 0.4, 0.3),
                            resize_range=(0.3, 1.2), gaussian_sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5))


@dataclass(frozen=True)
class DegradationConfig:
    """The settings of both stages, and of what follows them.

    `scale`: by how many times the LQ image is smaller than the HQ image, a whole number from 1 to 8.
    `margin`: how many px around the HQ crop are degraded together with it and then cut away (see
    `realsr_r1.data.degradation.crops.Surroundings`). `shrunk_probability`: that a crop is degraded
    at a larger size and shrunk afterwards (see `realsr_r1.data.degradation.crops.shrunk`), as a
    whole photo is when a model looks at it at its own size. `final_sinc_probability`: that a sinc filter
    is applied beside the second JPEG compression, with a kernel size drawn as in the second stage.
    """

    scale: int = 4
    margin: int = 0
    shrunk_probability: float = 0.0
    first: StageConfig = field(default_factory=StageConfig)
    second: StageConfig = _SECOND_STAGE
    final_sinc_probability: float = 0.8

    @classmethod
    def from_dict(cls, values: Mapping[str, Any],
                  where: str = "the degradation settings") -> DegradationConfig:
        """Make a config from nested mappings. Missing keys have their defaults.

        Raises `UserError` that names a bad key, and `where` the values came from.
        """
        values = dict(_mapping(values, where))
        stages = {name: _fill(getattr(cls(), name), values.pop(name), f"{name} in {where}")
                  for name in ("first", "second") if name in values}
        config = _fill(cls(), {**values, **stages}, where)
        if config.scale not in range(1, LARGEST_SCALE + 1):
            raise UserError(f"scale in {where} is {config.scale!r}; it must be a whole number from 1 to "
                            f"{LARGEST_SCALE}")
        if not (isinstance(config.margin, int) and 0 <= config.margin <= LARGEST_MARGIN):
            raise UserError(f"margin in {where} is {config.margin!r}; it must be a whole number of px from 0 "
                            f"to {LARGEST_MARGIN}")
        return config

    @classmethod
    def from_yaml(cls, path: str | Path) -> DegradationConfig:
        """Read a YAML file. Raises `UserError` that names the file and the key that is wrong."""
        return cls.from_dict(read_yaml(path, dict[Text, Json] | None) or {}, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested plain values, which `from_dict` reads."""
        return dataclasses.asdict(self)


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected keys with values, found {type(values).__name__}")
    return values


def _fill(default: Any, values: Any, where: str) -> Any:
    """A copy of `default` in which `values`, each checked, replace fields."""
    known = [item.name for item in dataclasses.fields(default)]
    checked = {}
    for key, value in _mapping(values, where).items():
        if key not in known:
            raise UserError(f"unknown key {key!r} in {where}; known ones: {', '.join(known)}")
        checked[key] = (value if dataclasses.is_dataclass(value)
                        else _check(key, value, getattr(default, key), where))
    return dataclasses.replace(default, **checked)


def _check(key: str, value: Any, default: Any, where: str) -> Any:
    numbers = list(value) if isinstance(default, tuple) and isinstance(value, (list, tuple)) else [value]
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) or not abs(n) < LARGEST for n in numbers):
        raise UserError(f"{key} in {where} is {reprlib.repr(value)}; it must hold numbers below {LARGEST}")
    if not isinstance(default, tuple):
        if key.endswith("probability") and not 0 <= value <= 1:
            raise UserError(f"{key} in {where} is {value!r}; a probability lies between 0 and 1")
        return type(default)(value) if value == int(value) or isinstance(default, float) else value
    if len(numbers) != len(default) or not isinstance(value, (list, tuple)):
        raise UserError(f"{key} in {where} is {value!r}; it must be a list of {len(default)} numbers")
    if key.endswith("probabilities"):
        if min(numbers) < 0 or abs(sum(numbers) - 1) > 1e-6:
            raise UserError(f"{key} in {where} is {value!r}; the values must not be negative and must sum to "
                            "1")
    elif numbers[0] > numbers[1] or numbers[0] <= 0:
        raise UserError(f"{key} in {where} is {value!r}; it must be [lowest, highest], both above 0")
    if key == "kernel_size" and any(n % 2 != 1 for n in numbers):
        raise UserError(f"kernel_size in {where} is {value!r}; kernel sizes are odd whole numbers")
    if key == "jpeg_quality" and numbers[1] > 100:
        raise UserError(f"jpeg_quality in {where} is {value!r}; JPEG quality ends at 100")
    if key in MOST and numbers[1] > MOST[key]:
        raise UserError(f"{key} in {where} is {value!r}; it may go up to {MOST[key]}")
    if key == "resize_range" and not numbers[0] <= 1 <= numbers[1]:
        raise UserError(f"resize_range in {where} is {value!r}; it must include 1")
    return tuple(type(d)(n) for d, n in zip(default, numbers, strict=True))
