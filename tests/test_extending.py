"""docs/extending.md: each of its examples runs as it stands on the page."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from realsr_r1 import create_json
from realsr_r1.chain import ChainProcessor, ChainSpec, parse_chain
from realsr_r1.data.records import load_dataset_dict
from realsr_r1.measuring.suites import Suite, check_data
from realsr_r1.models import load_policy
from realsr_r1.rewards import load_reward_funcs
from realsr_r1.rewards.experts import create_experts, score_images
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .small import photo, write_dataset, write_model

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
LONGEST = 30  # lines of an example
# file name -> text of every block that begins with the name of its file
EXAMPLES = {name: text for _, text in re.findall(r"```(python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
            for name in re.findall(r"\A# (\w+\.(?:py|yaml))", text)}


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A working folder with all examples in it."""
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def module(name: str) -> ModuleType:
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def test_the_page_has_its_examples_and_they_are_short():
    assert set(EXAMPLES) == {"my_rewards.py", "my_experts.py", "my_degradation.yaml", "my_labeller.py",
                             "my_suite.yaml", "my_chain.yaml", "my_grpo.py", "my_base.py",
                             "my_advantages.py"}
    assert max(text.count("\n") for text in EXAMPLES.values()) < LONGEST


def test_the_reward_scores_completions(written):
    sys.modules.pop("my_rewards", None)
    reward, = load_reward_funcs(["my_rewards:contrast"])
    flat, busy = photo("coffee").point(lambda _: 128), photo("coffee")
    scores = reward(completions=["a", "b", "c"], images=[[busy], [flat], []], tag=[["cup"]] * 3)
    assert scores[0] > scores[1] == scores[2] == 0.0


def test_the_expert_judges_images(written):
    sys.modules.pop("my_experts", None)
    expert, = create_experts(["my_experts:Sharpness"])
    sharp = photo("coffee")
    assert score_images(expert, [sharp])[0] > score_images(expert,
                                                           [sharp.resize((6, 6)).resize(sharp.size)])[0]


def test_the_degradation_makes_a_dataset(written, photos_dir):
    assert not create_json.main(["--images", str(photos_dir), "--tags", str(photos_dir), "--crop_px", "48",
                                 "--num_proc", "1",
                                 "--degradation", "my_degradation.yaml", "--output",
                                 str(written / "dataset")])
    parameters = (written / "dataset" / "train.parameters.jsonl")
    assert not parameters.is_file() or "blur" in parameters.read_text()
    assert (written / "dataset" / "dataset_dict.json").is_file()


def test_the_labeller_gives_the_labels_of_real_photos(written, photos_dir):
    assert not create_json.main(["--images", str(photos_dir), "--tags", str(photos_dir), "--crop_px", "48",
                                 "--num_proc", "1", "--degradation_labeller", "my_labeller:factory",
                                 "--output", "dataset"])
    train = load_dataset_dict("dataset")["train"]
    assert "hq" not in train.column_names and all(len(labels) == 5 for labels in train["degradation"])


def test_the_suite_is_a_test_set(written):
    for side, px in (("low", 16), ("high", 32)):
        (written / side).mkdir()
        for number in (1, 2):
            photo("coffee", px, zoom=number).save(written / side / f"scene_0{number}.png")
    assert check_data(Suite.from_yaml(Path("my_suite.yaml")), written, written / "out").hq == written / "high"


def test_the_chain_is_what_a_policy_writes(written, tiny_model):
    processor = ChainProcessor.from_pretrained(tiny_model, chain_settings="my_chain.yaml")
    spec = ChainSpec.from_yaml("my_chain.yaml")
    assert processor.chain == spec and spec.labels == ("sketch", "final")
    engine = RolloutEngine(load_policy(tiny_model), processor, RolloutConfig(
        num_generations=1, grammar="chain", max_text_tokens=4, max_new_tokens=400, guidance_scale=1.0))
    text, images = processor.decode(
        engine.generate(processor.encode_prompt(photo("coffee"))).completion_ids[0])
    assert parse_chain(text, spec).is_well_formed and [image.width for image in images] == [32, 48]


def test_the_loss_trains_a_policy(written, tiny_model):
    model, dataset = write_model(written / "model", tiny_model), write_dataset(written / "dataset")
    example = module("my_grpo")
    from realsr_r1 import grpo

    losses = []

    class Watched(example.ImitatingTrainer):
        def _compute_loss(self, model, inputs):
            losses.append(super()._compute_loss(model, inputs))
            return losses[-1]

    grpo.main(["--model_name_or_path", str(model), "--dataset_name", str(dataset), "--output_dir",
               str(written / "run"),
               "--max_steps", "1", "--num_generations", "2", "--grammar", "chain", "--max_completion_length",
               "200",
               "--reward_funcs", "format", "degradation", "generation", "--experts", "ssim", "--report_to",
               "none",
               "--save_strategy", "no", "--learning_rate", "1e-3", "--guidance_scale", "1",
               "--max_text_tokens", "6"], Watched)
    assert losses and all(torch.isfinite(loss) for loss in losses)
    before, after = (load_policy(folder).state_dict() for folder in (model, written / "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_advantages_are_divided_by_the_range(written):
    from types import SimpleNamespace

    example = module("my_advantages")
    trainer = SimpleNamespace(reward_weights=torch.tensor([1.0, 1.0]), group_size=2)
    rewards = torch.tensor([[0.0, 1.0], [1.0, 2.0], [0.5, 0.5], [0.5, torch.nan]])
    found = example.RangeTrainer.advantages(trainer, rewards)
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.5, 0.5, -0.5]), atol=1e-3, rtol=0)


def test_the_base_model_is_saved_and_loaded_under_its_own_name(written, tiny_model):
    from realsr_r1.models.families import FAMILIES

    example = module("my_base")
    try:
        source = load_policy(tiny_model, dtype=torch.float32)
        policy = example.OwnPolicy(example.OwnConfig(**{**source.config.to_dict(),
                                                        "model_type": "own_model"}))
        policy.load_state_dict(source.state_dict())
        policy.save_pretrained(written / "own")
        loaded = load_policy(written / "own")
        assert type(loaded) is example.OwnPolicy
        ids = torch.tensor([[0, 5, 9]])
        torch.testing.assert_close(loaded(input_ids=ids).logits, source(input_ids=ids).logits)
    finally:
        for kind in ("own_model", "anole"):
            FAMILIES.pop(kind, None)
