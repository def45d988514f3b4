"""Microbatches that nothing can be learned from: all completions cut, of one token, or without a reward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from realsr_r1.training.grpo.packing import IGNORED, pack_groups

CUT = {"grammar": "image", "max_completion_length": 5, "mask_truncated_completions": True}


def moved(trainer: Any) -> float:
    """Train, and return by how much the weights have changed."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    return max(float((old - new.detach()).abs().max())
               for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("changes", [{}, {"loss_batch_size": 1}, {"loss_batch_size": 3, "share_prompts": False},
                                     {"beta": 0.1}, {"credit": "section", "loss_batch_size": 2},
                                     {"gradient_checkpointing": True, "loss_type": "dapo"}], ids=str)
def test_completions_that_were_all_cut_add_nothing_to_the_loss(make_trainer, changes):
    trainer, _ = make_trainer(**{**CUT, "logging_steps": 1, **changes})
    assert moved(trainer) == 0
    assert trainer.state.log_history[0]["loss"] == 0
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1


def test_a_cut_completion_beside_whole_ones_hides_nothing_in_the_log(make_trainer):
    trainer, _ = make_trainer(loss_batch_size=1, mask_truncated_completions=True, logging_steps=1)
    score, ended = trainer._generate_and_score_completions, []

    def one_is_cut(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = score(inputs)
        first = batch["chunk"][0] if "chunk" in batch else batch
        first["completion_mask"] = first["completion_mask"] * 0
        ended.append(True)
        return batch

    trainer._generate_and_score_completions = one_is_cut
    assert moved(trainer) > 0 and ended
    log = trainer.state.log_history[0]
    assert all(math.isfinite(value) for name, value in log.items() if name.startswith("entropy/"))


def test_completions_of_one_token_are_trained_on(make_trainer):
    trainer, _ = make_trainer(grammar="image", max_completion_length=1)
    assert math.isfinite(moved(trainer))


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_groups_whose_rewards_are_all_missing_move_nothing(make_trainer, aggregation):
    def unknown(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    trainer, _ = make_trainer(first=unknown, multi_objective_aggregation=aggregation)
    assert moved(trainer) == 0


@pytest.mark.parametrize("length", [1, 2, 5])
def test_masked_rows_are_packed_without_a_label(length):
    ids = torch.arange(2 * (3 + length)).view(2, -1)
    mask = torch.ones_like(ids)
    mask[:, 3:] = 0
    packed = pack_groups(ids, mask, length)
    assert packed.labels.shape == (2, 1) and (packed.labels == IGNORED).all()
    assert packed.layout.positions().shape == packed.input_ids.shape
