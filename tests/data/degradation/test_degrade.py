"""Promises of the degradation: it repeats, its labels are true and balanced, its settings are
checked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.data.degradation.config import DegradationConfig, StageConfig
from realsr_r1.data.degradation.degrade import LABEL_ITEMS, degrade, level
from realsr_r1.data.degradation.kernels import bell_kernel, sinc_kernel

CONFIGS = Path(__file__).parents[3] / "configs" / "degradation"


@pytest.fixture(scope="module")
def photo():
    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as image:
        return image.convert("RGB").crop((100, 20, 356, 276)).resize((48, 48))


def test_same_seed_and_key_give_the_same_image_in_any_order(photo):
    config = DegradationConfig(scale=1)
    first = [degrade(photo, 3, f"photo/{i}", config) for i in range(6)]
    again = [degrade(photo, 3, f"photo/{i}", config) for i in reversed(range(6))][::-1]
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
        assert (one.labels, one.parameters) == (two.labels, two.parameters)
    assert not np.array_equal(np.asarray(degrade(photo, 4, "photo/0", config).image),
                              np.asarray(first[0].image))


@pytest.mark.parametrize("scale, size", [(1, (48, 40)), (2, (24, 20)), (4, (12, 10))])
def test_size_is_that_of_the_photo_divided_by_scale(photo, scale, size):
    config = DegradationConfig(scale=scale)
    assert {degrade(photo.resize((48, 40)), 0, str(i), config).image.size for i in range(20)} == {size}


@pytest.fixture(scope="module", params=["tiny.yaml", "real_esrgan.yaml"])
def many(request, photo):
    """A configuration and 3000 degradations of a small picture (what is drawn doesn't depend on the
    picture).
    """
    config = DegradationConfig.from_yaml(CONFIGS / request.param)
    small = photo.resize((12, 12))
    return config, [degrade(small, 0, str(i), config) for i in range(3000)]


def test_each_level_is_a_third_of_the_draws(many):
    config, drawn = many
    for item, wanted in ((0, "blur"), (2, "noise"), (3, "compression")):
        counts = Counter(result.labels[item] for result in drawn)
        assert set(counts) == {f"{word} {wanted}" for word in ("light", "medium", "heavy")}
        assert all(abs(count / 3000 - 1 / 3) <= 0.04 for count in counts.values()), counts
    for item, stage in ((1, config.first), (4, config.second)):
        counts = Counter(result.labels[item] for result in drawn)
        for word, share in zip(("upsample", "downsample", "keep"), stage.resize_probabilities, strict=True):
            assert abs(counts[word] / 3000 - share) <= 0.04


def test_levels_are_balanced_within_each_kind_of_blur_and_noise(many):
    for operation, kinds in (("blur", {"iso", "aniso", "sinc"}), ("noise", {"gaussian", "poisson"})):
        for kind in kinds:
            parameters = [result.parameters[operation] for result in many[1]]
            severities = [item["severity"] for item in parameters if item["kind"] == kind]
            counts = Counter(level(severity) for severity in severities)
            tolerance = 4 * np.sqrt(2 / 9 / len(severities))
            assert all(abs(count / len(severities) - 1 / 3) <= tolerance
                       for count in counts.values()), (kind, counts)


def fixed(stage: StageConfig, **changes) -> StageConfig:
    """A stage that does nothing visible, but for `changes`."""
    quiet = dict(blur_probability=0.0, resize_probabilities=(0.0, 0.0, 1.0), gaussian_probability=1.0,
                 gaussian_sigma=(1e-6, 1e-6), jpeg_quality=(100.0, 100.0), grey_probability=0.0)
    return dataclasses.replace(stage, **{**quiet, **changes})


def mean_error(photo, **changes):
    config = DegradationConfig(scale=1, final_sinc_probability=0.0, first=fixed(StageConfig(), **changes),
                               second=fixed(StageConfig()))
    outputs = [np.asarray(degrade(photo, 0, str(i), config).image, dtype=float) for i in range(8)]
    return np.mean([np.abs(output - np.asarray(photo, dtype=float)).mean() for output in outputs])


def test_doing_nothing_changes_nothing_but_rounding(photo):
    assert mean_error(photo) < 2.5  # JPEG at quality 100 halves the colour resolution


@pytest.mark.parametrize("weak, strong", [
    ({"blur_probability": 1.0, "blur_sigma": (0.3, 0.6)},
     {"blur_probability": 1.0, "blur_sigma": (2.0, 3.0)}),
    ({"gaussian_sigma": (1.0, 8.0)}, {"gaussian_sigma": (20.0, 30.0)}),
    ({"gaussian_probability": 0.0, "poisson_scale": (0.05, 0.3)},
     {"gaussian_probability": 0.0, "poisson_scale": (2.0, 3.0)}),
    ({"jpeg_quality": (85.0, 95.0)}, {"jpeg_quality": (30.0, 40.0)}),
    ({"resize_probabilities": (0.0, 1.0, 0.0), "resize_range": (0.9, 1.0)},
     {"resize_probabilities": (0.0, 1.0, 0.0), "resize_range": (0.15, 1.0)})])
def test_stronger_settings_of_each_operation_change_the_photo_more(photo, weak, strong):
    assert mean_error(photo) < mean_error(photo, **weak) < mean_error(photo, **strong)


def test_labels_follow_the_drawn_parameters(photo):
    low, high = StageConfig().gaussian_sigma
    for i in range(200):
        result = degrade(photo, 0, str(i), DegradationConfig(scale=1))
        drawn = dict(zip(LABEL_ITEMS, result.labels, strict=True))
        quality = result.parameters["compression"]["quality"]
        words = {"light": 95 >= quality > 73.33, "medium": 73.33 >= quality > 51.67,
                 "heavy": 51.67 >= quality}
        assert words[drawn["compression"].split()[0]]
        noise = result.parameters["noise"]
        if noise["kind"] == "gaussian":
            third = (high - low) / 3
            assert drawn["noise"].split()[0] == ("light", "medium",
                                                 "heavy")[int((noise["sigma"] - low) // third)]
        factor = result.parameters["second_resize"]["factor"]
        assert drawn["second resize"] == ("upsample" if factor > 1 else "downsample" if factor < 1
                                          else "keep")


def test_kernels_sum_to_one_and_keep_the_centre():
    for kernel in (bell_kernel(13, 2, 0.7, 0.5), bell_kernel(9, 1, 1, 0, "generalised", 0.6),
                   bell_kernel(21, 3, 3, 0, "plateau", 1.5), sinc_kernel(21, np.pi / 3),
                   sinc_kernel(7, np.pi)):
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
        assert kernel.argmax() == kernel.size // 2


def test_a_turned_kernel_is_long_in_its_direction():
    kernel = bell_kernel(21, 3, 0.8, np.pi / 2)  # long axis turned from x to y
    assert kernel[4, 10] > 100 * kernel[10, 4]


def test_the_file_of_published_numbers_is_the_default():
    assert DegradationConfig.from_yaml(CONFIGS / "real_esrgan.yaml") == DegradationConfig()


def test_settings_survive_a_round_trip():
    config = DegradationConfig.from_yaml(CONFIGS / "tiny.yaml")
    assert DegradationConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("text, named", [
    ("scale: 0", "scale"), ("scale: 2.5", "scale"), ("scale: 9", "scale"), ("sclae: 4", "sclae"), ("first: {blur_sigma: [3, 1]}", "blur_sigma"),
    ("first: {resize_probabilities: [0.5, 0.5, 0.5]}", "resize_probabilities"),
    ("first: {kernel_size: [6, 8]}", "kernel_size"),
    ("second: {jpeg_quality: [30, 101]}", "jpeg_quality"),
    ("final_sinc_probability: 2", "final_sinc_probability"),
    ("first: {gaussian_sigma: loud}", "gaussian_sigma"), ("first: 3", "first"), ("- 1", "it must hold keys"),
    ("a: [", "YAML")])
def test_wrong_settings_are_named_with_their_file(tmp_path, text, named):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        DegradationConfig.from_yaml(path)
    assert named in str(error.value) and "wrong.yaml" in str(error.value)
