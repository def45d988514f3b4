"""Blur kernels of the degradation: Gaussian, generalised and plateau shapes, and the sinc filter.

The kernels may be round or stretched. degrade.py draws their parameters.
"""

from __future__ import annotations

import math

import numpy as np

PROFILES = ("gaussian", "generalised", "plateau")


def bell_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, profile: str = "gaussian",
                shape: float = 1.0) -> np.ndarray:
    """A kernel (size, size), float32, with the sum 1, that falls off with the distance d in sigmas.

    `size`: odd. `sigma_x`, `sigma_y`: widths in px along the kernel's own axes, which are turned by
    `angle` radians. `profile`: "gaussian" is exp(-d^2/2), "generalised" is exp(-(d^2)^shape / 2),
    "plateau" is 1 / (1 + (d^2)^shape). Raises `ValueError` on another profile or an even size.
    """
    x, y = _grid(size)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma_y
    squared = along**2 + across**2
    if profile == "gaussian":
        kernel = np.exp(-0.5 * squared)
    elif profile == "generalised":
        kernel = np.exp(-0.5 * squared**shape)
    elif profile == "plateau":
        kernel = 1.0 / (1.0 + squared**shape)
    else:
        raise ValueError(f"unknown profile {profile!r}; known ones: {', '.join(PROFILES)}")
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """The circular low-pass filter (size, size), float32, with the sum 1.

    It makes rings beside edges. `cutoff`: in radians for each pixel, in (0, pi]; higher frequencies
    are removed. The ideal disc in the frequency plane has the impulse response cutoff * J1(cutoff *
    r) / (2 pi r), which is cut to the kernel's size here.
    """
    from scipy.special import j1

    x, y = _grid(size)
    radius = np.hypot(x, y)
    centre = size // 2
    radius[centre, centre] = 1.0  # the limit at 0 is put in below
    kernel = cutoff * j1(cutoff * radius) / (2.0 * math.pi * radius)
    kernel[centre, centre] = cutoff**2 / (4.0 * math.pi)
    return (kernel / kernel.sum()).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size % 2 != 1 or size < 1:
        raise ValueError(f"a kernel's size is odd and positive, not {size}")
    offsets = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(offsets, offsets)
