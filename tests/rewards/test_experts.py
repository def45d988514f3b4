"""Visual experts by name: their scores (0 to 1) fall as a photo is damaged, also your own expert's.
"""

from __future__ import annotations

import sys
import urllib.error

import numpy
import pytest
from PIL import Image, ImageFilter

from realsr_r1.core.errors import UserError
from realsr_r1.rewards.experts import DEFAULT_EXPERTS, create_experts, expert_needs_hq, score_images

CUSTOM = '''
class Brightness:
    needs_hq = False
    name = "brightness"

    def __init__(self, device):
        self.calls = []

    def score(self, images, hq):
        self.calls.append([image.size for image in images])
        return [image.convert("L").resize((1, 1), 4).getpixel((0, 0)) / 100 for image in images]

class Unsure(Brightness):
    def score(self, images, hq):
        return [float("nan"), -3.0, 0.5][:len(images)]

def nothing(device):
    return None

def redness(images, hq=None):
    return [image.resize((1, 1), 4).getpixel((0, 0))[0] / 255 for image in images]

def likeness(images, hq):
    return [float(image.tobytes() == original.tobytes()) for image, original in zip(images, hq)]

def one_number(images):
    return 0.5

def broken(images):
    return [image.no_such_thing() for image in images]

def at_start(device):
    return 1 / 0

not_a_function = 3
'''


@pytest.fixture
def custom_module(tmp_path, monkeypatch):
    (tmp_path / "stand_in_experts.py").write_text(CUSTOM, encoding="utf-8")
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_there", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("stand_in_experts", None)


@pytest.fixture(scope="module")
def ssim():
    return create_experts(["ssim"])[0]


@pytest.fixture(scope="module")
def piqe():
    return create_experts(["piqe"])[0]


def with_noise(image: Image.Image, sigma: float) -> Image.Image:
    noise = numpy.random.default_rng(0).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray((numpy.asarray(image) + noise).clip(0, 255).astype("uint8"))


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def test_ssim_is_one_for_the_photo_itself_and_falls_with_damage(ssim, photos):
    steps = [score_images(ssim, [damage(photo) for photo in photos], photos)
             for damage in (lambda p: p, lambda p: blurred(p, 1), lambda p: with_noise(blurred(p, 1), 25))]
    assert steps[0] == pytest.approx([1.0] * 4)
    assert all(1 > mild > heavy > 0 for mild, heavy in zip(*steps[1:]))


def test_piqe_ranks_the_photo_above_heavy_noise_strong_blur_and_a_flat_image(piqe, photos):
    # Means over photos: at 48 px single photos can come out the other way (see the note in
    # experts.py).
    sharp = numpy.mean(score_images(piqe, photos))
    assert sharp > numpy.mean(score_images(piqe, [with_noise(photo, 60) for photo in photos])) + 0.1
    assert sharp > numpy.mean(score_images(piqe, [blurred(photo, 3) for photo in photos])) + 0.3
    assert score_images(piqe, [Image.new("RGB", (48, 48), "teal")]) == [0.0]


def test_an_image_that_a_metric_cannot_judge_scores_zero_with_a_warning(piqe):
    with pytest.warns(UserWarning, match="piqe.*NaN"):
        assert score_images(piqe, [Image.new("RGB", (48, 48), "black")]) == [0.0]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (15, 17), (16, 64), (200, 30)])
def test_any_size_is_scored(piqe, ssim, photos, size):
    image = photos[0].resize(size)
    for score in score_images(piqe, [image]) + score_images(ssim, [image], [photos[0]]):
        assert 0.0 <= score <= 1.0


def test_scores_do_not_depend_on_the_neighbours(piqe, ssim, photos):
    images = [blurred(photos[0], 1), photos[1].resize((32, 32)), with_noise(photos[2], 20),
              photos[3].resize((64, 48))]
    for expert in (piqe, ssim):
        alone = [score_images(expert, [image], [hq])[0] for image, hq in zip(images, photos)]
        assert score_images(expert, images, photos) == pytest.approx(alone, abs=1e-6)


def test_drawing_small_is_no_way_to_a_better_ssim(ssim, photos):
    soft = [with_noise(blurred(photo, 1), 5) for photo in photos]
    small = [image.resize((16, 16), Image.Resampling.BOX) for image in soft]
    assert numpy.mean(score_images(ssim, small, photos)) < numpy.mean(score_images(ssim, soft, photos))


def test_an_hq_image_of_another_size_is_compared_all_the_same(ssim, photos):
    large = photos[1].resize((96, 96), Image.Resampling.BICUBIC)
    assert score_images(ssim, [photos[1]], [large])[0] > 0.97
    assert score_images(ssim, [large], [photos[1]])[0] > 0.97


def test_ssim_without_the_hq_images_is_a_mistake_of_the_caller(ssim, photos):
    with pytest.raises(ValueError, match="ssim"):
        score_images(ssim, photos)


def test_nothing_is_scored_without_images(piqe):
    assert score_images(piqe, []) == []


def test_an_expert_is_made_once():
    assert create_experts(["piqe", "ssim"])[0] is create_experts(["piqe"])[0]


@pytest.mark.parametrize("name", ["pique", "", "stand_in", ":f", "stand_in:", "a b:c", ".x:y"])
def test_an_unknown_expert_is_refused_with_the_list_of_known_ones(name):
    with pytest.raises(UserError) as caught:
        create_experts(["piqe", name])
    assert all(known in str(caught.value) for known in (*DEFAULT_EXPERTS, "piqe", "ssim", repr(name)))


def test_no_expert_at_all_is_refused():
    with pytest.raises(UserError, match="no expert"):
        create_experts([])


@pytest.mark.parametrize("name", DEFAULT_EXPERTS)
def test_weights_that_cannot_be_had_are_said_with_the_way_out(monkeypatch, name):
    import pyiqa

    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service\nnot known")

    monkeypatch.setattr(pyiqa, "create_metric", offline)
    with pytest.raises(UserError, match=f"{name}.*internet.*piqe, ssim") as caught:
        create_experts([name], device="meta")  # a device no other test has made experts for
    assert "\n" not in str(caught.value)


def test_known_experts_say_whether_they_need_the_hq_image():
    assert [name for name in (*DEFAULT_EXPERTS, "piqe", "ssim") if expert_needs_hq(name)] == ["ssim"]


def test_ones_own_expert_gets_one_batch_a_size_and_is_clamped(custom_module, photos):
    expert = create_experts(["stand_in_experts:Brightness"])[0]
    white = Image.new("RGBA", (48, 48), "white")
    images = [photos[0], photos[1].resize((32, 32)), Image.new("L", (48, 48), 50), white]
    scores = score_images(expert, images)
    assert scores[2:] == [0.5, 1.0]
    assert sorted(expert.calls[1:]) == [[(32, 32)], [(48, 48)] * 3]  # the first call was the trial
    assert not expert_needs_hq("stand_in_experts:Brightness")


def test_a_plain_function_is_an_expert(custom_module, photos):
    red, like = create_experts(["stand_in_experts:redness", "stand_in_experts:likeness:2"])
    assert score_images(red, [Image.new("RGB", (48, 48), "red"), Image.new("RGB", (20, 20))]) == [1.0, 0.0]
    assert score_images(like, photos[:2], [photos[0], photos[0]]) == [1.0, 0.0]
    assert [expert_needs_hq(f"stand_in_experts:{name}") for name in ("redness", "likeness")] == [False, True]


def test_no_number_of_ones_own_expert_counts_as_zero(custom_module, photos):
    with pytest.warns(UserWarning, match="NaN"):
        assert score_images(create_experts(["stand_in_experts:Unsure"])[0], photos[:3]) == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name, message", [
    ("stand_in_experts:missing", "no function 'missing'"), ("stand_in_experts:not_a_function", "no function"),
    ("no_such_module:f", "no module 'no_such_module'"),
    ("stand_in_experts:nothing", "has no name, needs_hq, score"),
    ("stand_in_experts:one_number", "it returned 0.5; it must return a list with a number for each picture"),
    ("stand_in_experts:broken", r"raised AttributeError: .*no_such_thing.*stand_in_experts.py, line \d+"),
    ("stand_in_experts:at_start", "its factory raised ZeroDivisionError")])
def test_ones_own_expert_that_cannot_be_made_is_refused(custom_module, name, message):
    with pytest.raises(UserError, match=message):
        create_experts([name])


def test_a_module_missing_inside_ones_own_keeps_its_traceback(custom_module):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        create_experts(["needs_more:f"])
