"""A small policy's folder, and trainers made from it."""

from __future__ import annotations

from typing import Any

import pytest

from realsr_r1.models import load_policy
from realsr_r1.training.config import ChainGRPOConfig
from realsr_r1.training.grpo.prompts import load_prompts
from realsr_r1.training.grpo.trainer import ChainGRPOTrainer

from ...small import write_model

PROMPTS, GROUP = 2, 3


class Letters:
    """A reward that differs between completions, and keeps what it saw."""

    __name__ = "letters"

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        scores = [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]
        self.seen.append({"completions": completions, "scores": scores, **columns})
        return scores


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), tiny_model, target_px=16)


@pytest.fixture
def make_trainer(model, processor, dataset, tmp_path):
    """A function that makes a trainer of two prompts a step, with plain descent, and its reward."""
    def make(*rewards: Any, first: Any = None, **changes: Any) -> tuple[ChainGRPOTrainer, Any]:
        args = ChainGRPOConfig(**{**dict(
            output_dir=str(tmp_path / "run"), dataset_name=str(dataset), report_to="none", max_steps=1,
            save_strategy="no", grammar="chain", max_completion_length=350, max_text_tokens=4,
            num_generations=GROUP, sample_steps=0, num_generations_eval=2, per_device_eval_batch_size=2,
            per_device_train_batch_size=PROMPTS, optim="sgd", learning_rate=1.0,
            lr_scheduler_type="constant", max_grad_norm=0.0, seed=5, disable_tqdm=True), **changes})
        reward = first or Letters()
        prompts = [load_prompts(str(dataset), split, processor, {}, tmp_path / "prompts", 5000)
                   for split in ("train", "test")]
        return ChainGRPOTrainer(load_policy(model), processor, [reward, *rewards], args, *prompts), reward
    return make
