"""The profile "published" does what the published code does, and each setting of it tells the two
apart (tests/released.py has that code's rules; tests/rollout/test_rows_grammar.py its sampling).
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy
import pyiqa
import pytest
import torch
from PIL import Image
from trl import ModelConfig

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.settings import ChainSettings
from realsr_r1.chain.text import IMAGE
from realsr_r1.core.images import drawn_offset, fit_image, fitted_size, scale_to_cover, to_pil
from realsr_r1.core.settings import parse
from realsr_r1.measuring.metrics import metric_of, parse_metrics
from realsr_r1.measuring.suites import Suite
from realsr_r1.rewards import load_reward_funcs
from realsr_r1.rollout import RolloutConfig
from realsr_r1.rollout.sampling import entropy_top_k
from realsr_r1.training.config import ChainGRPOConfig, ColdStartConfig

from . import released
from .conftest import ROOT
from .small import photo

RECIPES = ROOT / "configs" / "recipes"
OURS, CHAIN = ChainSettings(), ChainSettings.read(ROOT / "configs" / "chain" / "published.yaml")


def settings(name: str, output: Path, *flags: str):
    stage = ColdStartConfig if name.endswith("sft") else ChainGRPOConfig
    recipe = str(RECIPES / f"{name}.yaml")
    return parse((stage, ModelConfig), ["--config", recipe, "--output_dir", str(output), "--dataset_name",
                                        "data", *flags], "test")[0]


def section(name: str, body: str) -> str:
    return f"<{name}>{body}</{name}>"


def chain(*, sections=released.SECTIONS, between: str = "", **bodies: str) -> str:
    usual = {name: IMAGE if name.endswith("_image") else f"A {name}." for name in released.SECTIONS}
    return between.join(section(name, {**usual, **bodies}[name]) for name in sections)


# Completions, and whether ours would call their form right.
COMPLETIONS = {
    chain(): True,
    chain(between="\n "): True,
    chain(rough_understand="Education in a town of Tables."): True,
    chain(rough_image="no image here"): False,
    chain(middle_image=IMAGE * 2, final_image=""): False,
    chain(final_understand=section("degradation", "again")): False,
    chain() + chain(): False,
    chain(sections=(*released.SECTIONS[:2], *released.SECTIONS[1:])): False,
    " " + chain(): True,
    chain() + "\n": True,
    chain() + "!": False,
    chain(between=", "): False,
    chain(sections=released.SECTIONS[:-1]): False,
    chain(sections=(released.SECTIONS[1], released.SECTIONS[0], *released.SECTIONS[2:])): False,
    chain()[:-1]: False,
    "Some words, and " + section("rough_understand", "a CAT"): False,
    "": False,
}
TEXTS = list(COMPLETIONS)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """The profile's reward functions by name, with experts that run offline."""
    args = settings("published_grpo", tmp_path_factory.mktemp("run"), "--experts", "piqe", "psnr:1:0:50")
    made_with = args.reward_settings(CHAIN, "cpu")
    return dict(zip(args.reward_funcs, load_reward_funcs(args.reward_funcs, made_with), strict=True))


@pytest.fixture(scope="module")
def processor(tiny_model) -> ChainProcessor:
    found = ChainProcessor.from_pretrained(tiny_model)
    return found.with_settings(dataclasses.replace(found.settings, fit=CHAIN.fit, pixels=CHAIN.pixels))


def test_three_rewards_are_added_up_and_none_is_for_the_degradation(rewards, tmp_path):
    args = settings("published_grpo", tmp_path)
    assert set(rewards) == {"format", "understanding", "generation"} and args.reward_weights is None
    assert set(settings("pure_7b_grpo", tmp_path).reward_funcs) - set(rewards) == {"degradation"}


def test_the_form_is_right_where_the_lazy_pattern_fits(rewards):
    found = rewards["format"](TEXTS)
    assert found == [released.format_score(text) for text in TEXTS]
    ours = load_reward_funcs(["format"])[0](TEXTS)
    assert ours == [float(good) for good in COMPLETIONS.values()]
    assert sum(found) >= 6 and {1.0, -1.0} <= {one - other for one, other in zip(found, ours, strict=True)}


@pytest.mark.parametrize("tag, differs", [
    (["cat, table, window, dog"], True),  # "cat" is in "education"
    (["Town, cat, town, dog, cat\n", "never read"], True),
    (["education"], False), (["tab,able , ,in a town"], True), (["rough_understand"], False)])
def test_tags_count_by_their_letters_on_the_first_line_of_the_list(rewards, tag, differs):
    tags = [tag] * len(TEXTS)
    found = rewards["understanding"](TEXTS, tag=tags)
    assert found == pytest.approx([released.tag_score(text, tag) for text in TEXTS])
    assert (found != load_reward_funcs(["understanding"])[0](TEXTS, tag=tags)) == differs


def test_the_last_image_of_any_completion_is_scored(rewards):
    shown = [photo(name) for name in ("coffee", "chelsea", "astronaut")]
    images = [shown[:1 + number % 3] for number in range(len(TEXTS))]
    hq = [shown[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * len(TEXTS)
    metrics = {name: pyiqa.create_metric(name, device=torch.device("cpu")) for name in ("piqe", "psnr")}

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(numpy.asarray(image) / numpy.float32(255)).permute(2, 0, 1)[None]

    experts = [lambda image: 1 - metrics["piqe"](pixels(image)).item() / 100,
               lambda image: metrics["psnr"](pixels(image), pixels(hq[0])).item() / 50]
    found = rewards["generation"](TEXTS, images=images, hq=hq)
    assert found == pytest.approx([released.image_score(own, experts) for own in images], abs=1e-4)
    ours = load_reward_funcs(["generation"], experts=["piqe", "psnr:1:0:50"])[0](TEXTS, images=images, hq=hq)
    assert {0.0} == {mine for mine, text in zip(ours, TEXTS, strict=True) if not COMPLETIONS[text]}
    # Where the published code crashes, for there is no image, the score is 0.
    assert rewards["generation"]([chain()], images=[[]], hq=hq[:1]) == [0.0]


@pytest.mark.parametrize("size", [(600, 400), (640, 480), (512, 512), (300, 1000), (1500, 1100), (90, 33)])
def test_photos_are_fitted_and_cropped_at_a_place_that_is_drawn(size):
    given, draw = photo("coffee", 400).resize(size), random.Random(5)
    crops = [fit_image(given, 512, 32, lambda covering, wanted: drawn_offset(covering, wanted, draw))
             for _ in range(3)]
    again = random.Random(5)
    assert [crop.tobytes() for crop in crops] == [released.fitted(given, 512, 32, again).tobytes()
                                                  for _ in range(3)]
    assert fitted_size(*size, 512, 32) == crops[0].size


def test_the_place_is_drawn_anew_for_each_photo_where_ours_is_the_centre(processor):
    assert (CHAIN.fit, OURS.fit) == ("random_crop", "crop")
    wide = [photo("coffee", 80, zoom=1 + number / 40).resize((80, 60)) for number in range(40)]
    centred = processor.with_settings(dataclasses.replace(processor.settings, fit="crop"))

    def tops(processor: ChainProcessor) -> set[int]:
        """How many rows are cut off above, of photos that cover 48 x 32 with 48 x 36."""
        found = set()
        for image in wide:
            crop, covering = processor.fit(image), scale_to_cover(image, (48, 32))
            found |= {top for top in range(5)
                      if covering.crop((0, top, 48, top + 32)).tobytes() == crop.tobytes()}
        return found

    assert tops(centred) == {2} and tops(processor) == set(range(5))
    assert processor.fit(wide[0]).tobytes() == processor.fit(wide[0]).tobytes()


def test_decoded_pixels_are_cut_to_8_bits(processor):
    assert (CHAIN.pixels, OURS.pixels) == ("cut", "rounded")
    codes = torch.randint(processor.image_tokenizer.codebook_size, (12, 12), generator=torch.manual_seed(0))
    decoded = processor.image_tokenizer.decode(codes[None])[0].detach().numpy()
    (image,) = processor.decode(processor.layout.span(codes.tolist()))[1]
    expected = released.picture(decoded)
    assert (numpy.asarray(image) == expected).all()
    rounded = numpy.asarray(to_pil(torch.from_numpy(decoded)[None])[0], dtype=int)
    steps = rounded - expected
    assert set(numpy.unique(steps)) == {0, 1} and 0.3 < steps.mean() < 0.7


def test_a_question_of_the_lists_form_has_its_image_in_its_middle(processor):
    question = ("Restore it step by step. The photo: <|image|>. Write "
                + " ".join(section(name, " ... ") for name in released.SECTIONS) + ".")
    codes = [[3 * row + column for column in range(12)] for row in range(8)]
    names = processor.tokenizer.get_vocab()
    expected = released.prompt(names, processor.encode_text, question, codes, processor.layout.code_ids,
                               processor.layout.codes_per_unit)
    assert processor.prompt_from_span(processor.layout.span(codes), question) == expected
    assert CHAIN.chain.question == OURS.chain.question  # the profile asks nothing else than the records do


def test_sizes_and_codes_are_drawn_from_so_many(tmp_path):
    config = settings("published_grpo", tmp_path).rollout_config(5)
    generator = torch.manual_seed(0)
    scores = [torch.randn(4000, generator=generator) * spread for spread in (0.1, 1, 3, 8, 30)]
    found = [int(entropy_top_k(row[None], config.image_top_k_min, config.image_top_k_max)) for row in scores]
    assert found == [released.top_k(row.tolist()) for row in scores] and len(set(found)) == len(found)
    assert (config.grammar, RolloutConfig().grammar) == ("rows", "image")
    assert (config.text_top_k, config.temperature, config.guidance_scale) == (1, 0.9, 0.8)
    assert settings("published_grpo", tmp_path).train_forced_tokens


def test_the_launch_lines_numbers_are_those_of_the_recipe(tmp_path):
    args = settings("published_grpo", tmp_path)
    assert (args.max_prompt_length, args.max_completion_length, args.num_generations) == (5000, 7000, 5)
    assert (args.learning_rate, args.num_train_epochs, args.beta, args.bf16) == (2e-6, 2, 0.0, True)
    assert args.generation_batch_size == 5 and args.save_steps == 1 and args.save_only_model
    assert (args.loss_type, args.scale_rewards, args.credit) == ("grpo", "group", "sequence")


def test_the_cold_start_is_that_of_the_published_script(tmp_path):
    args = settings("published_sft", tmp_path)
    assert (args.learning_rate, args.lr_scheduler_type) == (2e-5, "constant_with_warmup")
    assert (args.max_length, args.save_steps, args.zero_image_head) == (11_776, 1000, True)
    assert args.get_warmup_steps(2000) == 1000 * 0.01 and args.num_train_epochs == 2
    assert (args.z_loss, args.dropout, args.weight_decay, args.max_grad_norm) == (1e-5, 0.05, 0.1, 4.0)
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.95)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 1)


def test_evaluation_with_the_published_topiq_is_another_metric_than_ours():
    ours, published = metric_of("topiq_nr"), metric_of("topiq_nr-spaq")
    assert ours.label != published.label and published.options == {}
    assert {"topiq_nr", "topiq_nr-spaq"} <= {*pyiqa.list_models()}  # of other training data, each
    for suite in (ROOT / "configs" / "suites").glob("*.yaml"):
        assert "topiq_nr-spaq" in Suite.from_yaml(suite).metrics
    assert parse_metrics("topiq_nr-spaq", has_originals=False) == ["topiq_nr-spaq"]
