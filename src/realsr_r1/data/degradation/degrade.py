"""Makes an LQ image from an HQ one by two stages of blur, resize, noise and JPEG, with labels.

This is an implementation of Real-ESRGAN's published model (arXiv 2107.10833); the numbers are in
config.py. All random numbers of an image come from (seed, key), so neither the order nor the number
of workers changes a result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from realsr_r1.data.degradation.config import KERNEL_KINDS, DegradationConfig, StageConfig
from realsr_r1.data.degradation.kernels import bell_kernel, sinc_kernel

LABEL_ITEMS = ("blur", "resize", "noise", "compression", "second resize")  # in this order everywhere
LEVELS = ("light", "medium", "heavy")
RESIZES = ("upsample", "downsample", "keep")
RESIZE_METHODS = ("area", "bilinear", "bicubic")  # drawn evenly

# Lowest cutoff of a sinc filter, in radians for each pixel (Real-ESRGAN's values): small kernels
# can't hold a lower one.
_SINC_SMALL_KERNEL = 13
_SINC_LOWEST_SMALL = math.pi / 3
_SINC_LOWEST_LARGE = math.pi / 5


@dataclass(frozen=True)
class Degraded:
    """What `degrade` returns.

    `image`: the LQ image. `labels`: five words in the order of `LABEL_ITEMS`. `parameters`: every
    value that was drawn.
    """

    image: Image.Image
    labels: list[str]
    parameters: dict[str, Any]


def random_for(seed: int, key: str) -> np.random.Generator:
    """The random generator for the item named `key`.

    It gives the same numbers on every machine, in every order of items and in every process.
    """
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def level(severity: float) -> str:
    """The word for a severity in [0, 1]. All thresholds are here.

    The severity of a draw is the share of this operation's possible draws that are weaker (its
    cumulative distribution under the configured range). With the thresholds 1/3 and 2/3 each word
    therefore gets a third of the draws, whatever the ranges are. For uniform draws (sigma of
    Gaussian noise, scale of Poisson noise, sigma of a round blur) the severity is the place in the
    range; for JPEG quality and the cutoff of a sinc filter it is the place counted from the top. A
    stretched blur is judged by the geometric mean of its two sigmas. A stage that doesn't blur at
    all (`blur_probability` below 1) is "light".

    With Real-ESRGAN's ranges the thresholds are sigma 1.13 and 2.07 px (round blur), sigma 10.7 and
    20.3 of 255 (Gaussian noise), scale 1.03 and 2.02 (Poisson noise), and JPEG quality 73.3 and
    51.7.
    """
    return LEVELS[min(int(severity * 3), 2)]


def degrade(hq: Image.Image, seed: int, key: str, config: DegradationConfig) -> Degraded:
    """Degrade an RGB image.

    `key` names the image, e.g. "photo.jpg/train/17", and with `seed` decides all draws. The LQ
    image has the size of `hq` divided by `config.scale`, but at least 1 px. The labels for blur,
    resize, noise and compression describe the first stage, "second resize" the second one.
    """
    rng = random_for(seed, key)
    pixels = np.asarray(hq.convert("RGB"), dtype=np.float32)
    lq_size = (max(1, round(hq.width / config.scale)), max(1, round(hq.height / config.scale)))

    pixels, blur = _blur(pixels, rng, config.first)
    pixels, resize = _resize(pixels, rng, config.first, hq.size)
    pixels, noise = _noise(pixels, rng, config.first)
    pixels, compression = _jpeg(pixels, rng, config.first)

    pixels, second_blur = _blur(pixels, rng, config.second)
    pixels, second_resize = _resize(pixels, rng, config.second, lq_size)
    pixels, second_noise = _noise(pixels, rng, config.second)
    pixels, final = _finish(pixels, rng, config, lq_size)

    labels = [f"{level(blur['severity'])} blur", resize["word"], f"{level(noise['severity'])} noise",
              f"{level(compression['severity'])} compression", second_resize["word"]]
    parameters = {"blur": blur, "resize": resize, "noise": noise, "compression": compression,
                  "second_blur": second_blur, "second_resize": second_resize, "second_noise": second_noise,
                  **final}
    return Degraded(Image.fromarray(_to_bytes(pixels)), labels, parameters)


def _drawn(words: Sequence[str], probabilities: Sequence[float], rng: np.random.Generator) -> str:
    """Draw one of the words. Divides by the sum, because numpy wants it to be exactly 1."""
    return words[rng.choice(len(words), p=np.array(probabilities) / sum(probabilities))]


# --- one operation each: from pixels (H, W, 3), float32, 0..255, to pixels and the drawn values ---

def _blur(pixels: np.ndarray, rng: np.random.Generator,
          stage: StageConfig) -> tuple[np.ndarray, dict[str, Any]]:
    import cv2

    if rng.random() >= stage.blur_probability:
        return pixels, {"kind": "none", "severity": 0.0}
    kernel, drawn = _draw_kernel(rng, stage)
    return cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT), drawn


def _draw_kernel(rng: np.random.Generator, stage: StageConfig) -> tuple[np.ndarray, dict[str, Any]]:
    size = _draw_size(rng, stage)
    if rng.random() < stage.sinc_probability:
        lowest = _SINC_LOWEST_SMALL if size < _SINC_SMALL_KERNEL else _SINC_LOWEST_LARGE
        cutoff = rng.uniform(lowest, math.pi)
        return sinc_kernel(size, cutoff), {"kind": "sinc", "size": size, "cutoff": cutoff,
                                           "severity": 1 - _place(cutoff, (lowest, math.pi))}
    kind = _drawn(KERNEL_KINDS, stage.kernel_probabilities, rng)
    sigma_x = rng.uniform(*stage.blur_sigma)
    if kind.endswith("aniso"):
        sigma_y, angle = rng.uniform(*stage.blur_sigma), rng.uniform(0, math.pi)
        severity = _geometric_mean_place(math.sqrt(sigma_x * sigma_y), stage.blur_sigma)
    else:
        sigma_y, angle = sigma_x, 0.0
        severity = _place(sigma_x, stage.blur_sigma)
    profile, shape = "gaussian", 1.0
    if kind.startswith("generalised"):
        profile, shape = "generalised", _draw_shape(rng, stage.generalised_shape)
    elif kind.startswith("plateau"):
        profile, shape = "plateau", _draw_shape(rng, stage.plateau_shape)
    kernel = bell_kernel(size, sigma_x, sigma_y, angle, profile, shape)
    return kernel, {"kind": kind, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_y, "angle": angle,
                    "shape": shape,
                    "severity": severity}


def _draw_size(rng: np.random.Generator, stage: StageConfig) -> int:
    smallest, largest = stage.kernel_size
    return int(smallest + 2 * rng.integers(0, (largest - smallest) // 2 + 1))


def _draw_shape(rng: np.random.Generator, shapes: tuple[float, float]) -> float:
    """Draw an exponent: below 1 (long tails) in half of the draws, above 1 in the others.

    A range that lies on one side of 1 is drawn from uniformly.
    """
    low, high = shapes
    if low < 1 < high:
        return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return rng.uniform(low, high)


def _resize(pixels: np.ndarray, rng: np.random.Generator, stage: StageConfig,
            base: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Resize to `base` (width, height) times the drawn factor."""
    word = _drawn(RESIZES, stage.resize_probabilities, rng)
    low, high = stage.resize_range
    factor = {"upsample": rng.uniform(1, high), "downsample": rng.uniform(low, 1), "keep": 1.0}[word]
    size = tuple(max(1, round(side * factor)) for side in base)
    pixels, method = _resize_to(pixels, rng, size)
    return pixels, {"word": word, "factor": factor, "method": method}


def _resize_to(pixels: np.ndarray, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    import cv2

    method = RESIZE_METHODS[rng.integers(len(RESIZE_METHODS))]
    code = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[method]
    same = size == (pixels.shape[1], pixels.shape[0])
    return pixels if same else cv2.resize(pixels, size, interpolation=code), method


def _noise(pixels: np.ndarray, rng: np.random.Generator,
           stage: StageConfig) -> tuple[np.ndarray, dict[str, Any]]:
    gaussian = rng.random() < stage.gaussian_probability
    grey = rng.random() < stage.grey_probability
    pixels = np.clip(pixels, 0, 255)
    if gaussian:
        sigma = rng.uniform(*stage.gaussian_sigma)
        shape = pixels.shape[:2] + ((1,) if grey else (3,))
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise *= sigma
        drawn = {"kind": "gaussian", "sigma": sigma, "severity": _place(sigma, stage.gaussian_sigma)}
    else:
        scale = rng.uniform(*stage.poisson_scale)
        noise = _photon_noise(pixels, rng, grey)
        noise *= scale
        drawn = {"kind": "poisson", "scale": scale, "severity": _place(scale, stage.poisson_scale)}
    pixels += noise  # in place, here and above, because workers share the memory's bandwidth
    return np.clip(pixels, 0, 255, out=pixels), {**drawn, "grey": bool(grey)}


def _photon_noise(pixels: np.ndarray, rng: np.random.Generator, grey: bool) -> np.ndarray:
    """Poisson noise of the light itself, (H, W, 3), or (H, W, 1) if `grey`.

    White is as many photons as the image has different values, rounded up to a power of two.
    """
    light = _to_bytes(pixels)
    if grey:
        light = np.rint(light @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)).astype(np.uint8)
    levels = int(np.count_nonzero(np.bincount(light.ravel(), minlength=256)))
    photons = 2.0 ** math.ceil(math.log2(max(levels, 2)))
    clean = light.astype(np.float32)
    noise = rng.poisson(clean * (photons / 255.0)).astype(np.float32)
    noise *= 255.0 / photons
    noise -= clean
    return noise


def _jpeg(pixels: np.ndarray, rng: np.random.Generator,
          stage: StageConfig) -> tuple[np.ndarray, dict[str, Any]]:
    import cv2

    quality = rng.uniform(*stage.jpeg_quality)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(_to_bytes(pixels), cv2.COLOR_RGB2BGR),
                           [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return decoded.astype(np.float32), {"quality": quality,
                                        "severity": 1 - _place(quality, stage.jpeg_quality)}


def _finish(pixels: np.ndarray, rng: np.random.Generator, config: DegradationConfig,
            size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """The last resize with its sinc filter, and the second JPEG, in either order."""
    import cv2

    kernel, cutoff, kernel_size = None, None, None
    if rng.random() < config.final_sinc_probability:
        cutoff, kernel_size = rng.uniform(_SINC_LOWEST_SMALL, math.pi), _draw_size(rng, config.second)
        kernel = sinc_kernel(kernel_size, cutoff)
    jpeg_first = bool(rng.random() < 0.5)
    if jpeg_first:
        pixels, drawn = _jpeg(pixels, rng, config.second)
    pixels, method = _resize_to(pixels, rng, size)
    if kernel is not None:
        pixels = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT)
    if not jpeg_first:
        pixels, drawn = _jpeg(pixels, rng, config.second)
    return pixels, {"second_compression": drawn, "final_sinc_cutoff": cutoff, "final_sinc_size": kernel_size,
                    "final_resize_method": method, "jpeg_before_resize": jpeg_first}


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels as bytes: rounded (halves to even) and clipped, in one pass."""
    import cv2

    return cv2.add(pixels, 0.0, dtype=cv2.CV_8U)


# --- severities: the cumulative distribution of a draw ---

def _place(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return (value - low) / (high - low) if high > low else 0.5


@lru_cache(maxsize=8)
def _sigma_grid(limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return low + (np.arange(400) + 0.5) / 400 * (high - low)


def _geometric_mean_place(mean: float, limits: tuple[float, float]) -> float:
    """P(sqrt(xy) < mean) for x, y uniform in `limits`.

    Computed as the integral of P(y < mean^2 / x) over x, by midpoints.
    """
    low, high = limits
    if high <= low:
        return 0.5
    return float(np.clip((mean**2 / _sigma_grid(limits) - low) / (high - low), 0, 1).mean())
