"""The fidelity reward: agreement with the input where it holds information, and with the HQ image."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from realsr_r1.data.degradation.config import DegradationConfig
from realsr_r1.data.degradation.degrade import degrade
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rewards.fidelity import FidelityReward

PX = 48


@pytest.fixture(scope="module")
def reward():
    return FidelityReward(target_px=PX)


@pytest.fixture(scope="module")
def inputs(photos) -> list[Image.Image]:
    """The photos after Real-ESRGAN's degradation, at a quarter of their sides."""
    return [degrade(photo, 0, f"{number}", DegradationConfig()).image for number, photo in enumerate(photos)]


def score(reward, chain, finals, lq=None, hq=None):
    images = [[final.resize((12, 12)), final.resize((24, 24)), final] for final in finals]
    return numpy.mean(reward([chain()] * len(finals), images=images, lq=lq, hq=hq))


def test_the_photo_agrees_with_its_input_and_another_does_not(reward, chain, photos, inputs):
    others = photos[1:] + photos[:1]
    assert score(reward, chain, photos, inputs) > 0.5
    assert score(reward, chain, others, inputs) < 0.2
    dark = [photo.point(lambda value: value // 2) for photo in photos]
    assert score(reward, chain, dark, inputs) < score(reward, chain, photos, inputs) - 0.2


def test_fitting_the_noise_of_the_input_earns_nothing(reward, chain, photos):
    noise = numpy.random.default_rng(0)
    noisy = [numpy.asarray(photo) + noise.normal(0, 12, (PX, PX, 3)) for photo in photos]
    lq = [Image.fromarray(pixels.clip(0, 255).astype("uint8")) for pixels in noisy]
    assert score(reward, chain, photos, lq) == score(reward, chain, lq, lq) == 1.0


def test_an_image_counts_for_what_it_shows_and_not_for_its_size(reward, chain, photos, inputs):
    small = [photo.resize((8, 8), Image.Resampling.BOX) for photo in photos]
    large = [image.resize((48, 48), Image.Resampling.BICUBIC) for image in small]
    assert score(reward, chain, small, inputs) == pytest.approx(score(reward, chain, large, inputs), abs=0.03)


def test_where_there_is_an_hq_image_psnr_to_it_is_half_of_the_score(reward, chain, photos, inputs):
    other, (psnr,) = photos[1], create_experts(["psnr"])
    columns = {"images": [[other] * 3], "lq": inputs[:1]}
    (without,) = reward([chain()], **columns)
    (both,) = reward([chain()], **columns, hq=photos[:1])
    assert both == pytest.approx((without + score_images(psnr, [other], photos[:1])[0]) / 2)
    assert reward([chain()], images=[[photos[0]] * 3], hq=photos[:1]) == [1.0]


def test_a_broken_chain_scores_zero_and_a_record_with_nothing_to_compare_gets_none(
        reward, chain, photos, odd_completions):
    count = len(odd_completions)
    assert reward(odd_completions, images=[photos[:3]] * count, lq=[photos[0]] * count) == [0.0] * count
    assert reward([chain()] * 2, images=[photos[:2], None], lq=photos[:2]) == [0.0, 0.0]
    assert reward([chain(), ""], images=[photos[:3], []]) == [None, None]


@pytest.mark.parametrize("size, lq", [((16, 64), (48, 48)), ((1, 1), (3, 90)), ((200, 30), (7, 7))])
def test_any_size_and_shape_is_compared(reward, chain, photos, size, lq):
    columns = {"images": [[photos[0].resize(size)] * 3], "lq": [photos[0].resize(lq)]}
    assert 0.0 <= reward([chain()], **columns)[0] <= 1.0
