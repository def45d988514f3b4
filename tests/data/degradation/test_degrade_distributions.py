"""Promise of the degradation's draws: each parameter follows its setting, over 30,000 draws of the
published settings.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from realsr_r1.data.degradation.config import KERNEL_KINDS, DegradationConfig
from realsr_r1.data.degradation.degrade import LABEL_ITEMS, LEVELS, RESIZE_METHODS, RESIZES, degrade

CONFIG = DegradationConfig.from_yaml(
    Path(__file__).parents[3] / "configs" / "degradation" / "real_esrgan.yaml")
DRAWS = 30_000
ALPHA = 0.001  # the draws are fixed by their seed: a test that passes once passes always


@pytest.fixture(scope="module")
def draws():
    """Labels and parameters of the draws, of a picture of a few pixels: what is drawn doesn't
    depend on the picture.
    """
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    degraded = (degrade(picture, 0, str(number), CONFIG) for number in range(DRAWS))
    return [(item.labels, item.parameters) for item in degraded]


def assert_uniform(values, low, high):
    assert len(values) > 100
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA
    assert low <= min(values) and max(values) <= high


def assert_shares(values, shares):
    """`shares`: value -> its probability."""
    counts = Counter(values)
    assert set(counts) <= {value for value, share in shares.items() if share > 0}
    expected = [share * len(values) for share in shares.values() if share > 0]
    observed = [counts[value] for value, share in shares.items() if share > 0]
    assert len(values) > 100
    assert stats.chisquare(observed, expected).pvalue > ALPHA if len(observed) > 1 else observed == expected


def assert_probability(flags, probability):
    assert_shares([bool(flag) for flag in flags], {True: probability, False: 1 - probability})


def even(values):
    return dict.fromkeys(values, 1 / len(values))


STAGES = pytest.mark.parametrize("prefix, stage", [("", CONFIG.first), ("second_", CONFIG.second)],
                                 ids=["first", "second"])


@STAGES
def test_blur(draws, prefix, stage):
    blurs = [parameters[f"{prefix}blur"] for _, parameters in draws]
    assert_probability([blur["kind"] != "none" for blur in blurs], stage.blur_probability)
    blurs = [blur for blur in blurs if blur["kind"] != "none"]
    assert_shares([blur["size"] for blur in blurs],
                  even(range(stage.kernel_size[0], stage.kernel_size[1] + 1, 2)))
    assert_probability([blur["kind"] == "sinc" for blur in blurs], stage.sinc_probability)
    sincs = [blur for blur in blurs if blur["kind"] == "sinc"]
    lowest = {True: math.pi / 3, False: math.pi / 5}  # of small kernels, and of the others
    places = [(blur["cutoff"] - lowest[blur["size"] < 13]) / (math.pi - lowest[blur["size"] < 13])
              for blur in sincs]
    assert_uniform(places, 0, 1)
    bells = [blur for blur in blurs if blur["kind"] != "sinc"]
    assert_shares([blur["kind"] for blur in bells],
                  dict(zip(KERNEL_KINDS, stage.kernel_probabilities, strict=True)))
    assert_uniform([blur["sigma_x"] for blur in bells], *stage.blur_sigma)
    stretched = [blur for blur in bells if blur["kind"].endswith("aniso")]
    assert_uniform([blur["sigma_y"] for blur in stretched], *stage.blur_sigma)
    assert_uniform([blur["angle"] for blur in stretched], 0, math.pi)
    assert all(blur["sigma_x"] == blur["sigma_y"] for blur in bells if blur["kind"].endswith("_iso"))


@STAGES
def test_shapes_of_kernels(draws, prefix, stage):
    shapes = {profile: [parameters[f"{prefix}blur"]["shape"] for _, parameters in draws
                        if parameters[f"{prefix}blur"]["kind"].startswith(profile)]
                        for profile in ("generalised", "plateau")}
    low, high = stage.generalised_shape
    assert_probability([shape < 1 for shape in shapes["generalised"]], 0.5)
    assert_uniform([shape for shape in shapes["generalised"] if shape < 1], low, 1)
    assert_uniform([shape for shape in shapes["generalised"] if shape >= 1], 1, high)
    assert_uniform(shapes["plateau"], *stage.plateau_shape)


@STAGES
def test_resize(draws, prefix, stage):
    resizes = [parameters[f"{prefix}resize"] for _, parameters in draws]
    assert_shares([resize["word"] for resize in resizes],
                  dict(zip(RESIZES, stage.resize_probabilities, strict=True)))
    assert_shares([resize["method"] for resize in resizes], even(RESIZE_METHODS))
    factors = {word: [resize["factor"] for resize in resizes if resize["word"] == word] for word in RESIZES}
    assert_uniform(factors["upsample"], 1, stage.resize_range[1])
    assert_uniform(factors["downsample"], stage.resize_range[0], 1)
    assert set(factors["keep"]) == {1.0}


@STAGES
def test_noise(draws, prefix, stage):
    noises = [parameters[f"{prefix}noise"] for _, parameters in draws]
    assert_probability([noise["kind"] == "gaussian" for noise in noises], stage.gaussian_probability)
    assert_probability([noise["grey"] for noise in noises], stage.grey_probability)
    assert_uniform([noise["sigma"] for noise in noises if noise["kind"] == "gaussian"], *stage.gaussian_sigma)
    assert_uniform([noise["scale"] for noise in noises if noise["kind"] == "poisson"], *stage.poisson_scale)


@STAGES
def test_compression(draws, prefix, stage):
    assert_uniform([parameters[f"{prefix}compression"]["quality"] for _, parameters in draws],
                   *stage.jpeg_quality)


def test_final_filter_and_order(draws):
    finals = [parameters for _, parameters in draws]
    assert_probability([final["final_sinc_cutoff"] is not None for final in finals],
                       CONFIG.final_sinc_probability)
    filtered = [final for final in finals if final["final_sinc_cutoff"] is not None]
    assert_uniform([final["final_sinc_cutoff"] for final in filtered], math.pi / 3, math.pi)
    smallest, largest = CONFIG.second.kernel_size
    assert_shares([final["final_sinc_size"] for final in filtered], even(range(smallest, largest + 1, 2)))
    assert_probability([final["jpeg_before_resize"] for final in finals], 0.5)
    assert_shares([final["final_resize_method"] for final in finals], even(RESIZE_METHODS))


def test_labels_hold_a_third_each_and_resizes_their_probabilities(draws):
    shares = {item: Counter(labels[place].split()[0] for labels, _ in draws)
              for place, item in enumerate(LABEL_ITEMS)}
    for item in ("blur", "noise", "compression"):
        assert all(abs(shares[item][word] / DRAWS - 1 / 3) <= 0.02 for word in LEVELS), (item, shares[item])
    for item, stage in (("resize", CONFIG.first), ("second resize", CONFIG.second)):
        for word, probability in zip(RESIZES, stage.resize_probabilities, strict=True):
            assert abs(shares[item][word] / DRAWS - probability) <= 0.02, (item, shares[item])
