"""The generation reward: the experts' mean score of the last image; 0 for a broken completion, None
for no judge.
"""

from __future__ import annotations

import numpy
import pytest
from PIL import Image, ImageFilter

from realsr_r1.core.errors import UserError
from realsr_r1.rewards import generation_reward
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rewards.generation import GenerationReward

OFFLINE = ["piqe", "ssim"]


@pytest.fixture(scope="module")
def reward():
    return GenerationReward(OFFLINE)


def test_it_is_the_mean_of_the_experts_on_the_last_image(reward, chain, photos):
    piqe, ssim = create_experts(OFFLINE)
    finals = [photos[1], photos[1].filter(ImageFilter.GaussianBlur(1))]
    hq = [photos[1]] * 2
    expected = numpy.mean([score_images(piqe, finals), score_images(ssim, finals, hq)], axis=0)
    images = [[photos[0], photos[2], final] for final in finals]
    assert reward([chain()] * 2, images=images, hq=hq) == pytest.approx(list(expected))
    assert expected[0] > expected[1]


def test_a_broken_chain_or_a_missing_image_scores_zero(reward, chain, photos, odd_completions):
    completions = [chain()] * 4 + odd_completions
    images = [photos[:2], [], None, [photos[0], None, photos[1]]] + [photos[:3]] * len(odd_completions)
    assert reward(completions, images=images, hq=[photos[0]] * len(completions)) == [0.0] * len(completions)
    assert reward([chain(), ""]) == [0.0, 0.0]


def test_good_and_broken_completions_stand_side_by_side(reward, chain, photos):
    scores = reward(["", chain(), chain()], images=[[], photos[:3], photos[:1]], hq=[photos[2]] * 3)
    assert scores[0] == scores[2] == 0.0 < scores[1]


def test_a_record_without_hq_is_judged_by_the_other_experts(reward, chain, photos):
    columns = {"images": [photos[:3]] * 2, "hq": [None, photos[2]]}
    without, with_hq = reward([chain()] * 2, **columns)
    piqe = score_images(create_experts(["piqe"])[0], [photos[2]])[0]
    assert without == pytest.approx(piqe)
    assert with_hq == pytest.approx((piqe + 1) / 2)
    assert reward([chain()], images=[photos[:3]]) == pytest.approx([piqe])


def test_a_record_that_no_expert_can_judge_gets_none(chain, photos):
    assert GenerationReward(["ssim"])([chain(), ""], images=[photos[:3], []], hq=[None, None]) == [None, None]


def test_the_plain_function_takes_names_of_experts(reward, chain, photos):
    columns = {"images": [photos[:3]], "hq": [photos[0]], "tag": [["cat"]]}
    assert generation_reward([chain()], experts=OFFLINE, **columns) == reward([chain()], **columns)
    assert reward.__name__ == generation_reward.__name__ == "generation_reward"


def test_an_unknown_expert_is_refused_when_the_reward_is_made():
    with pytest.raises(UserError, match="nimma.*known"):
        GenerationReward(["nimma"])


def test_final_images_of_different_sizes_are_scored(reward, chain, photos):
    sizes = [(16, 16), (48, 48), (64, 32), (3, 3)]
    images = [[*photos[:2], photos[0].resize(size)]
              for size in sizes] + [[*photos[:2], Image.new("RGB", (48, 0))]]
    scores = reward([chain()] * 5, images=images, hq=[photos[0]] * 5)
    assert all(0.0 <= score <= 1.0 for score in scores) and scores[4] == 0.0
