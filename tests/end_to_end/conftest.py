"""A small dataset of real photos and model folders with small policies, made once for all
end-to-end tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from realsr_r1.chain.processor import ChainProcessor

from .policies import random_policy
from .processes import ROOT
from .two_processes import TwoProcesses, train


@pytest.fixture(scope="session")
def dataset(photos_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder as `realsr-r1 create-json` makes it: 16 crops of four photos to train on,
    one photo left out.
    """
    from realsr_r1 import create_json

    folder = tmp_path_factory.mktemp("data") / "dataset"
    assert not create_json.main([
        "--images", str(photos_dir), "--tags", str(photos_dir), "--output", str(folder), "--crop_px", "48",
        "--crops_per_photo", "4", "--test_photos", "rocket", "--num_proc", "1",
        "--degradation", str(ROOT / "configs" / "degradation" / "tiny.yaml")])
    return folder


@pytest.fixture(scope="session")
def processor(tiny_model: Path) -> ChainProcessor:
    """The embedded model's tokenizers and settings."""
    return ChainProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def small_model(processor: ChainProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a random policy of 0.2 M parameters."""
    return random_policy(tmp_path_factory.mktemp("models") / "small", processor)


@pytest.fixture(scope="session")
def trained(dataset, small_model, tmp_path_factory) -> TwoProcesses:
    """Two steps with the chain's four rewards and one from a module of one's own."""
    return train(tmp_path_factory.mktemp("two"), small_model, dataset, [
        "--reward_funcs", "format", "degradation", "understanding", "generation", "probe:vowels", "--grammar",
        "chain",
        "--max_text_tokens", "6", "--max_completion_length", "400", "--num_generations", "3",
        "--per_device_train_batch_size", "1", "--loss_batch_size", "3", "--save_steps", "1", "--sample_steps",
        "1"],
        {"DEBUG_MODE": "true"})
