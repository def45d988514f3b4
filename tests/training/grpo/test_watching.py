"""What the log says of a rollout, computed here again from what the trainer wrote and scored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from realsr_r1.models import load_policy
from realsr_r1.rollout import RolloutEngine
from realsr_r1.training.grpo.statistics import repeated_rows

from .conftest import GROUP


def entropies(policy: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Entropy of the policy at each token of a completion, in nats."""
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("changes", [{}, {"share_prompts": False}], ids=str)
def test_spread_sections_and_rows_are_those_of_the_completions(make_trainer, model, processor, changes):
    def length(completions: list[str], **columns: Any) -> list[float]:
        return [len(text) / 100 for text in completions]

    trainer, reward = make_trainer(length, loss_batch_size=6, logging_steps=1, **changes)
    trainer.train()
    record = next(row for row in trainer.state.log_history if "loss" in row)
    (seen,) = reward.seen
    ids = seen["completion_ids"]

    letters = torch.tensor(seen["scores"]).view(-1, GROUP)
    lengths = torch.tensor([len(text) / 100 for text in seen["completions"]]).view(-1, GROUP)
    assert lengths.std(1).all()
    assert record["spread/letters"] == pytest.approx(letters.std(1).mean().item(), rel=1e-5)
    assert record["spread/total"] == pytest.approx((letters + lengths).std(1).mean().item(), rel=1e-5)
    above = torch.stack([(scores - scores.mean(1, keepdim=True)).flatten() for scores in (letters, lengths)])
    correlation = torch.corrcoef(above)[0, 1].item()
    assert record["correlation/letters-length"] == pytest.approx(correlation, abs=1e-4)

    policy = load_policy(model)
    engine = RolloutEngine(policy, processor, trainer.args.rollout_config(GROUP))
    rollout = engine.generate(seen["prompts"][::GROUP], step=0)
    assert rollout.completion_ids == ids
    numbers = torch.cat([torch.tensor(processor.layout.section_numbers(row)) for row in ids])
    values = torch.cat([entropies(policy, *pair) for pair in zip(seen["prompts"], ids, strict=True)])
    chosen = torch.cat([torch.tensor(row) for row in rollout.sampled_mask]).bool()
    for number, name in enumerate(processor.chain.names()):
        here = numbers == number
        assert record[f"length/{name}"] == pytest.approx(here.sum().item() / len(ids))
        assert record[f"entropy/{name}"] == pytest.approx(values[here & chosen].mean().item(), abs=1e-4)
    finals = [processor.layout.find_spans(row)[-1].codes for row in ids]
    assert record["repeated_rows"] == pytest.approx(sum(map(repeated_rows, finals)) / len(ids))
    assert record["repeated_rows"] < 0.2  # a random policy's images are no collapse


def test_an_evaluation_is_watched_too(make_trainer, processor):
    trainer, _ = make_trainer()
    found = trainer.evaluate()
    assert {f"eval_{part}/{name}" for name in processor.chain.names() for part in ("entropy", "length")} <= {
        *found}
    assert math.isfinite(found["eval_repeated_rows"]) and "eval_spread/letters" in found
