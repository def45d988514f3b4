"""Any metric of pyiqa as an expert: its direction, range and weight, tiny images, and missing weights."""

from __future__ import annotations

import contextlib

import numpy
import pytest
from PIL import ImageFilter

from realsr_r1.core.errors import UserError
from realsr_r1.rewards.experts import create_experts, parse_expert, score_images
from realsr_r1.rewards.generation import GenerationReward
from realsr_r1.rewards.metric_experts import metric_names, usual_limits

from ..small import exit_code

REFERENCE = ("psnr", "ssim", "fsim", "gmsd", "vsi", "vif", "ms_ssim", "cw_ssim", "nlpd", "mad")
MUSIQ_FILE = "musiq_koniq_ckpt-e95806b9.pth"


@pytest.fixture
def offline(monkeypatch):
    """No download is tried, whether or not the machine has internet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", REFERENCE)
def test_metrics_without_weights_rank_small_photos_by_their_damage(name, photos):
    (expert,) = create_experts([name])
    noise = numpy.random.default_rng(0)
    damaged = [photos[1].filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 0.7, 2)]
    damaged.append(photos[1].copy())
    damaged[3].putdata([tuple(pixel) for pixel in noise.integers(0, 256, (48 * 48, 3)).tolist()])
    same, mild, strong, lost = score_images(expert, damaged, [photos[1]] * 4)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert same > mild > strong > lost >= 0.0
    for side in (1, 3, 17):
        assert 0.0 <= score_images(expert, [damaged[2].resize((side, side))], [photos[1]])[0] <= 1.0


def test_direction_and_range_are_pyiqas_and_an_open_range_must_be_given():
    assert [usual_limits(name) for name in ("musiq", "gmsd", "unique")] == [(0, 100), (1, 0), (-3, 3)]
    open_ended = []
    for name in metric_names():
        try:
            worst, best = usual_limits(name)
            assert worst != best
        except UserError as error:
            open_ended.append(name) if "needs its range" in str(error) else None
    assert open_ended == ["pi", "dmm", "afine_all"]
    assert parse_expert("dmm:2:0:1").limits == (0.0, 1.0)
    with pytest.raises(UserError, match="dmm:WEIGHT:WORST:BEST, where BEST is above WORST"):
        parse_expert("dmm")


def test_a_given_range_stretches_the_scores(photos):
    soft = [photos[1].filter(ImageFilter.GaussianBlur(1))]
    usual, given = (score_images(create_experts([name])[0], soft, photos[1:2])[0]
                    for name in ("psnr", "psnr:1:20:30"))
    assert given == pytest.approx((usual * 40 - 20) / 10)


def test_weights_count_in_the_mean(chain, photos):
    columns = {"images": [[photos[0]] * 3], "hq": [photos[1]]}
    one, other = (GenerationReward([name])([chain()], **columns)[0] for name in ("ssim", "piqe"))
    assert GenerationReward(["ssim:0.5", "piqe:1.5"])([chain()], **columns) == pytest.approx(
        [0.25 * one + 0.75 * other])


@pytest.mark.parametrize("name, message", [
    ("musik", "'musik' .did you mean musiq"), ("gsmd", "did you mean gmsd"), ("ssim:heavy", "weight 'heavy'"),
    ("ssim:0", "weight '0'"), ("ssim:-1", "weight '-1'"), ("ssim:inf", "weight 'inf'"),
    ("gmsd:1:0:0.3", "wrong direction: a lower gmsd is better"),
    ("psnr:1:40:0", "wrong direction: a higher psnr is better"), ("psnr:1:a:2", "'a' and '2'"),
    ("ssim:1:0", "ssim:WEIGHT:WORST:BEST"), ("fid", "a whole set of images"), ("clipscore", "a text"),
    ("realsr_r1.rewards.experts:create_experts:1:0:1", "from 0 to 1 already"),
    ("realsr_r1.rewards.experts:create_experts:0", "weight '0'")])
def test_what_is_wrong_with_a_name_is_said_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        create_experts(["piqe", name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, file", [("musiq", f"pyiqa/{MUSIQ_FILE}"), ("clipiqa", "clip/RN50.pt")])
def test_a_missing_weight_is_named_with_its_place_and_ends_with_code_2(offline, tmp_path, capsys, name, file):
    assert exit_code(lambda _: create_experts([name], "cpu", str(tmp_path)), []) == 2
    folder, _, name = file.partition("/")
    (line,) = capsys.readouterr().err.strip().splitlines()
    for part in (name, str(tmp_path / folder), "internet", f"--expert_weights {tmp_path}", "piqe, ssim"):
        assert part in line


def test_weights_are_taken_from_the_folder_and_only_from_there(offline, tmp_path, photos):
    """With random weights of MUSIQ: the scores are those of the file in the folder."""
    import torch
    from huggingface_hub import constants
    from pyiqa.archs.musiq_arch import MUSIQ
    from pyiqa.utils import download_util

    before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, constants.HF_HUB_CACHE
    (tmp_path / "pyiqa").mkdir()
    torch.manual_seed(0)
    network = MUSIQ(pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "pyiqa" / MUSIQ_FILE)
    (expert,) = create_experts(["musiq:1:-100:100"], "cpu", str(tmp_path))
    pixels = torch.tensor(numpy.asarray(photos[0])).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = float(network(pixels))
    assert expert.score(photos[:1], None)[0] == pytest.approx((expected + 100) / 200, abs=1e-4)
    assert before == (torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, constants.HF_HUB_CACHE)
    with contextlib.suppress(FileNotFoundError), pytest.raises(UserError, match=MUSIQ_FILE):
        create_experts(["musiq"], "cpu", str(tmp_path / "empty"))
