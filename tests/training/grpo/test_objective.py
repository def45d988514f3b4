"""The objective's formulas are what TRL computes, and what a run is trained with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from realsr_r1.training.grpo import objective
from realsr_r1.training.grpo import trainer as trainer_module
from realsr_r1.training.grpo.trl_hooks import result_of

from .conftest import GROUP, PROMPTS

PER_UPDATE = ("dapo", "cispo", "vespo")  # their mean is over the tokens of a whole update
NAN = float("nan")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(18)


# Advantages

def rewards_of(generator, groups: int = 6, group: int = GROUP, functions: int = 3) -> torch.Tensor:
    """Random rewards with holes: a row without any, groups with one or none, a group of equals."""
    rewards = torch.rand(groups * group, functions, generator=generator)
    rewards[torch.rand(rewards.shape, generator=generator) < 0.2] = NAN
    rewards[1] = NAN
    rewards[group:2 * group - 1] = NAN
    rewards[2 * group:3 * group] = NAN
    rewards[3 * group:4 * group] = 0.5
    rewards[4 * group:5 * group, 0] = NAN
    return rewards


def make_believe(trainer, rewards: torch.Tensor, weights: list[float], monkeypatch) -> list[dict[str, Any]]:
    """Records of a rollout, which is over at once: completions of one token, with these rewards."""
    rows, names = len(rewards), ["a", "b", "c"][:rewards.shape[1]]
    generated = ([[5]] * rows, [[6]] * rows, [[1]] * rows, ["text"] * rows, [[0.0]] * rows, {}, None, [])
    monkeypatch.setattr(trainer, "_generate", lambda prompts: generated)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: rewards.clone())
    monkeypatch.setattr(trainer, "reward_weights", torch.tensor(weights))
    monkeypatch.setattr(trainer, "reward_func_names", names)
    monkeypatch.setattr(trainer, "reward_funcs", names)
    trainer.model.train()
    return [{"prompt": [5]} for _ in range(rows)]


def test_advantages_are_trls_to_the_bit(make_trainer, generator, monkeypatch):
    trainer, _ = make_trainer()
    rewards, weights = rewards_of(generator), [1.0, 0.3, 2.0]
    records, seen = make_believe(trainer, rewards, weights, monkeypatch), set()
    for aggregation in objective.AGGREGATIONS:
        for scaling in objective.SCALINGS:
            trainer.multi_objective_aggregation, trainer.scale_rewards = aggregation, scaling
            theirs = GRPOTrainer._generate_and_score_completions(trainer, records)["advantages"]
            ours = objective.group_advantages(rewards, torch.tensor(weights), GROUP, scaling, aggregation)
            assert torch.equal(ours, theirs), (aggregation, scaling)
            assert ours.isfinite().all() and not ours[1] and not ours[2 * GROUP:3 * GROUP].any()
            seen.add(tuple(ours.tolist()))
    assert len(seen) == 4  # normalize_then_sum has one form


@pytest.mark.parametrize("share_prompts", [True, False])
def test_a_run_is_trained_with_the_objectives_advantages(make_trainer, monkeypatch, share_prompts):
    trainer, _ = make_trainer(share_prompts=share_prompts, scale_rewards="batch", loss_batch_size=2,
                              multi_objective_aggregation="normalize_then_sum")
    records = make_believe(trainer, torch.rand(PROMPTS * GROUP, 2), [0.5, 1.0], monkeypatch)
    calls = []

    def advantages(rewards, weights, *settings):
        calls.append((rewards.shape, weights.tolist(), *settings))
        return torch.arange(len(rewards)) - 2.5

    monkeypatch.setattr(trainer_module, "group_advantages", advantages)
    trained = []
    for trainer._step in range(3):  # microbatches of two completions
        trained += trainer._prepare_inputs(records)["advantages"].tolist()
    assert sorted(trained) == [row - 2.5 for row in range(PROMPTS * GROUP)]
    assert calls == [((PROMPTS * GROUP, 2), [0.5, 1.0], GROUP, "batch", "normalize_then_sum")]


@pytest.mark.parametrize("words", [("groups", "sum_then_normalize"), ("group", "sum")])
def test_an_unknown_scaling_is_refused(words):
    with pytest.raises(ValueError, match="must be one of"):
        objective.group_advantages(torch.zeros(4, 1), torch.ones(1), 2, *words)


# The loss

def microbatch_of(generator, rows: int = 6, tokens: int = 9) -> SimpleNamespace:
    """Log-probabilities before and after an update and of a reference; in row 2 no token counts."""
    log_probs = -torch.rand(rows, tokens, generator=generator) * 3 - 0.01
    moved = [log_probs + torch.randn(log_probs.shape, generator=generator) * 0.3 for _ in range(2)]
    lengths = torch.tensor([tokens, 4, tokens, 1, 7, tokens])
    completion_mask = (torch.arange(tokens) < lengths[:, None]).long()
    sampled_mask = (torch.rand(rows, tokens, generator=generator) < 0.7).long()
    completion_mask[2] = 0
    return SimpleNamespace(log_probs=log_probs.requires_grad_(), old=moved[0], reference=moved[1],
                           completion_mask=completion_mask, sampled_mask=sampled_mask,
                           advantages=torch.randn(rows, generator=generator),
                           by_token=torch.randn(rows, tokens, generator=generator))


def loss_of_trl(trainer, batch, advantages, old, reference, monkeypatch) -> torch.Tensor:
    """GRPOTrainer's loss where the policy's log-probabilities are the batch's."""
    scored = (batch.log_probs, torch.zeros_like(batch.log_probs), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: scored)
    ids = torch.ones_like(batch.completion_mask)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
              "completion_mask": batch.completion_mask, "tool_mask": batch.sampled_mask,
              "advantages": advantages, "num_items_in_batch": torch.tensor(50)}
    if old is not None:
        inputs["old_per_token_logps"] = old
    if reference is not None:
        inputs["ref_per_token_logps"] = reference
    return GRPOTrainer._compute_loss(trainer, None, inputs)


OPTIONS = [{}, {"beta": 0.3}, {"beta": 0.3, "use_bias_correction_kl": False},
           {"importance_sampling_level": "sequence"}, {"importance_sampling_level": "sequence", "beta": 0.3},
           {"epsilon": 0.1, "epsilon_high": 0.4, "delta": 1.3}]


@pytest.mark.parametrize("loss_type", objective.LOSS_TYPES)
def test_the_loss_and_its_gradient_are_trls(make_trainer, generator, monkeypatch, loss_type):
    trainer, _ = make_trainer(loss_type=loss_type, max_completion_length=350)
    trainer.model.train()
    accumulation, per_rollout = 6, 3
    trainer.current_gradient_accumulation_steps = accumulation
    trainer.args.steps_per_generation = per_rollout
    batch = microbatch_of(generator)
    weights = objective.token_weights(batch.completion_mask, batch.sampled_mask)
    for options in OPTIONS:
        settings = trainer.args
        before = {name: getattr(settings, name) for name in options}
        vars(settings).update(options)
        trainer.beta, trainer.importance_sampling_level = settings.beta, settings.importance_sampling_level
        trainer.epsilon_low = settings.epsilon
        trainer.epsilon_high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        reference = batch.reference if settings.beta else None
        for old in (None, batch.old):
            for advantages in (batch.advantages, batch.by_token):
                theirs = loss_of_trl(trainer, batch, advantages, old, reference, monkeypatch)
                ours = objective.policy_loss(batch.log_probs, advantages, weights, settings, old, reference,
                                             step_tokens=50 * accumulation / per_rollout)
                if loss_type not in PER_UPDATE:
                    ours = ours / accumulation
                gradients = [torch.autograd.grad(loss, batch.log_probs)[0] for loss in (ours, theirs)]
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
                assert gradients[0].any() and not gradients[0][2].any()
        vars(settings).update(before)
    ratio = (batch.log_probs - batch.old).exp()
    assert (ratio > 1.2).any() and (ratio < 0.8).any()  # so the clip was at work


def test_the_loss_of_a_real_run_is_the_objectives(make_trainer, monkeypatch):
    trainer, _ = make_trainer(loss_type="dapo", beta=0.1, num_iterations=2, max_steps=2, loss_batch_size=3)
    compared, tokens, moved = [], [], []

    def both(self, model, inputs):
        with result_of(self, "_get_per_token_logps_and_entropies") as results:
            loss = theirs(self, model, inputs)
        log_probs, old = results[0][0].detach(), inputs["old_per_token_logps"]
        weights = objective.token_weights(inputs["completion_mask"], inputs["tool_mask"])
        ours = objective.policy_loss(log_probs, inputs["advantages"], weights, self.args, old,
                                     inputs["ref_per_token_logps"], inputs["num_items_in_batch"])
        compared.append((float(ours), float(loss.detach())))
        tokens.append((int(weights.sum()), int(inputs["num_items_in_batch"])))
        moved.append(float(((log_probs - old) * weights).abs().max()))
        return loss

    theirs = GRPOTrainer._compute_loss
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", both)
    trainer.train()
    assert len(compared) == 2 * PROMPTS  # an update has two microbatches, a rollout two updates
    for ours, loss in compared:
        assert ours == pytest.approx(loss, rel=1e-6, abs=1e-6)
    counts, totals = zip(*tokens, strict=True)
    assert set(totals) == {sum(counts[:PROMPTS])} == {sum(counts[PROMPTS:])}
    assert max(moved[:PROMPTS]) < 1e-4 < 0.2 < max(moved[PROMPTS:])  # then the policy is another one


def test_an_unknown_loss_is_refused(make_trainer):
    trainer, _ = make_trainer()
    rows = torch.zeros(2, 3)
    for name, value in (("loss_type", "mine"), ("importance_sampling_level", "word")):
        settings = SimpleNamespace(**{**vars(trainer.args), name: value})
        with pytest.raises(ValueError, match=f"{name} is '{value}'"):
            objective.policy_loss(rows, torch.zeros(2), rows, settings)
