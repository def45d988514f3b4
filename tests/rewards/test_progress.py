"""The progress reward: the share of a chain's steps at which the image becomes better."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFilter

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.rewards.progress import ProgressReward

ONE_IMAGE = ChainSpec.from_dict({"problem": "Restore it.", "sections": [
    {"name": "final_image", "kind": "image", "share": 1.0}]}, "a chain")


@pytest.fixture(scope="module")
def reward():
    return ProgressReward(["ssim"])


def blurred(photo: Image.Image, *radii: float) -> list[Image.Image]:
    return [photo.filter(ImageFilter.GaussianBlur(radius)) if radius else photo for radius in radii]


@pytest.mark.parametrize("radii, expected", [((3, 1, 0), 1.0), ((0, 1, 3), 0.0), ((1, 3, 0), 0.5),
                                             ((3, 0, 1), 0.5), ((1, 1, 1), 0.0), ((2, 2, 0), 0.5)])
def test_it_is_the_share_of_the_steps_that_are_better(reward, chain, photos, radii, expected):
    assert reward([chain()], images=[blurred(photos[1], *radii)], hq=photos[1:2]) == [expected]


def test_a_small_image_counts_for_what_it_shows(reward, chain, photos):
    # Each is the photo itself, so the larger one has more of its details.
    growing = [photos[1].resize((side, side), Image.Resampling.BOX) for side in (12, 24, 48)]
    assert reward([chain()] * 2, images=[growing, growing[::-1]], hq=photos[1:2] * 2) == [1.0, 0.0]


def test_a_small_image_and_the_same_one_enlarged_are_no_progress(chain, photos):
    small = photos[1].resize((16, 16), Image.Resampling.BOX)
    large = small.resize((48, 48), Image.Resampling.BICUBIC)
    for images in ([small, large, large], [large, large, small]):
        assert ProgressReward(["piqe"])([chain()], images=[images]) == [0.0]


def test_it_is_the_mean_over_the_experts_with_their_weights(chain, photos):
    images = [blurred(photos[1], 0, 1, 3)]  # worse and worse by ssim
    inverse = ProgressReward(["ssim:3", "entropy:1:0:8"])(["", chain()], images=[[], *images], hq=photos[:2])
    alone = ProgressReward(["entropy"])([chain()], images=images)[0]
    assert inverse == pytest.approx([0.0, alone / 4])


def test_without_an_hq_image_only_experts_without_a_reference_judge(reward, chain, photos):
    images = [blurred(photos[1], 3, 1, 0)]
    assert reward([chain()], images=images) == [None]
    assert ProgressReward(["ssim", "piqe"])([chain()], images=images) == ProgressReward(["piqe"])(
        [chain()], images=images)


def test_broken_chains_score_zero(reward, photos, odd_completions):
    count = len(odd_completions)
    assert reward(odd_completions, images=[photos[:3]] * count, hq=[photos[0]] * count) == [0.0] * count


def test_a_chain_with_one_image_has_no_progress_to_judge():
    with pytest.raises(UserError, match="has one image.*--reward_funcs"):
        ProgressReward(["ssim"], spec=ONE_IMAGE)
