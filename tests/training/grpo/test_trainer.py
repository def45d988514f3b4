"""A step of `ChainGRPOTrainer` is the published code's update, computed here again without TRL."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from realsr_r1.models import load_policy
from realsr_r1.rollout import RolloutEngine

from .conftest import GROUP, PROMPTS


def seed_gradients(policy: torch.nn.Module, prompts: list[list[int]], completions: list[list[int]],
                   masks: list[list[int]],
                   scores: list[float]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Gradients of the mean over completions of the mean over scored tokens of -advantage * ratio.

    Also the completions' log-probabilities.
    """
    groups = torch.tensor(scores).view(-1, GROUP)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    loss, log_probs = torch.zeros(()), []
    for prompt, completion, mask, advantage in zip(prompts, completions, masks, advantages, strict=True):
        logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]
        chosen = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        log_probs.append(chosen.detach())
        ratio = (chosen - log_probs[-1]).exp()
        loss = loss - advantage * (ratio * torch.tensor(mask)).sum() / sum(mask) / len(completions)
    loss.backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters()}, log_probs


@pytest.mark.parametrize("changes", [
    {}, {"loss_batch_size": 2}, {"loss_batch_size": 6, "gradient_checkpointing": True},
    {"share_prompts": False}, {"train_forced_tokens": True}, {"jacobi": 4}], ids=str)
def test_a_step_is_the_seeds_update(make_trainer, model, processor, changes):
    trainer, reward = make_trainer(**changes)
    trainer.train()
    (seen,) = reward.seen
    prompts = seen["prompts"]
    assert prompts[0] == prompts[GROUP - 1] != prompts[GROUP]  # groups are whole
    policy = load_policy(model)
    engine = RolloutEngine(policy, processor, trainer.args.rollout_config(GROUP))
    rollout = engine.generate(prompts[::GROUP], step=0)
    assert rollout.completion_ids == seen["completion_ids"]
    masks = rollout.sampled_mask
    if changes.get("train_forced_tokens"):
        masks = [[1] * len(row) for row in masks]
    assert changes.get("train_forced_tokens") or 0 < sum(masks[0]) < len(masks[0])
    gradients, log_probs = seed_gradients(policy, prompts, rollout.completion_ids, masks, seen["scores"])
    before = {name: tensor.detach().clone() for name, tensor in policy.named_parameters()}
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(before[name] - parameter.detach(), gradients[name], rtol=1e-3, atol=2e-6)
    if changes.get("loss_batch_size", 6) == 6:  # else a mean of the microbatches' means
        drawn = torch.cat([torch.tensor(row) for row in rollout.log_q])
        scored = torch.cat([torch.tensor(row) for row in masks]).bool()
        logged = next(row["sampling/log_ratio"] for row in trainer.state.log_history
                      if "sampling/log_ratio" in row)
        assert logged == pytest.approx(float((drawn - torch.cat(log_probs))[scored].mean()), abs=1e-4)


def test_with_bf16_rollouts_compute_in_bfloat16_as_the_loss_does(make_trainer):
    trainer, _ = make_trainer(bf16=True)
    types = []
    projection = trainer.model.model.layers[0].self_attn.q_proj
    projection.register_forward_hook(
        lambda module, inputs, output: types.append((torch.is_grad_enabled(), output.dtype)))
    trainer.train()
    assert projection.weight.dtype == torch.float32
    assert {with_gradients for with_gradients, _ in types} == {False, True}
    assert {dtype for _, dtype in types} == {torch.bfloat16}


def test_rewards_get_texts_images_and_the_datasets_columns(make_trainer):
    trainer, reward = make_trainer()
    trainer.train()
    (seen,) = reward.seen
    for text, images in zip(seen["completions"], seen["images"], strict=True):
        assert text.count("<|image|>") == len(images) == 3
        assert [image.width for image in images] == [16, 32, 48]  # the prompt's image is of 48 px
    assert len(seen["degradation"][0]) == 5 and seen["tag"][0] and seen["hq"][0].size == (48, 48)


def test_evaluation_draws_the_same_noise_each_time_and_leaves_training_alone(make_trainer):
    trainer, reward = make_trainer(eval_strategy="no")
    first, second = trainer.evaluate(), trainer.evaluate()
    evaluated = len(reward.seen) // 2
    completions = [row["completions"] for row in reward.seen]
    assert completions[:evaluated] == completions[evaluated:]
    trainer.train()
    plain, other = make_trainer()
    plain.train()
    assert reward.seen[-1]["completions"] == other.seen[-1]["completions"]
    assert first.keys() == second.keys()


def test_each_rollout_of_a_step_has_its_own_noise(make_trainer):
    trainer, reward = make_trainer(gradient_accumulation_steps=2, per_device_train_batch_size=1,
                                   learning_rate=0.0, max_steps=2)
    trainer.train()
    completions = [text for seen in reward.seen for text in seen["completions"]]
    assert len(set(completions)) == len(completions)


def test_a_fault_of_the_rollout_is_raised_and_leaves_the_policy_usable(make_trainer, processor):
    from realsr_r1.core.errors import UserError

    trainer, _ = make_trainer(max_completion_length=20)  # too short for a chain
    with pytest.raises(UserError, match="max_new_tokens is 20"):
        trainer.train()
    assert trainer.model(torch.tensor([[processor.layout.bos]])).logits.isfinite().all()


def test_a_record_without_truth_has_no_score_in_that_reward(make_trainer, tmp_path):
    def truth(completions: list[str], **columns: Any) -> list[float | None]:
        return [None, 0.25, 0.25] * PROMPTS

    trainer, reward = make_trainer(truth, sample_steps=1)
    trainer.train()
    rewards = json.loads((tmp_path / "run" / "samples" / "step-000001" / "rewards.json").read_text())
    letters = reward.seen[0]["scores"][:GROUP]
    assert rewards["letters"] == pytest.approx(letters)
    assert rewards["truth"] == [None, 0.25, 0.25]
    assert rewards["total"] == pytest.approx([letters[0], letters[1] + 0.25, letters[2] + 0.25])


def test_a_first_step_without_any_reward_is_said(make_trainer, caplog):
    def nothing(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer, _ = make_trainer(first=nothing)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "earned any reward" in caplog.text and "realsr-r1 sft" in caplog.text
