"""Credit by section: each reward's advantage reaches the tokens of the sections that it judges."""

from __future__ import annotations

import pytest
import torch

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.rewards.registry import judged_sections
from realsr_r1.training.grpo.objective import group_advantages, section_advantages, token_advantages
from realsr_r1.training.grpo.trainer import ChainGRPOTrainer


def test_three_sections_by_hand():
    """Two completions; reward a judges the first section, b the last two, c everything.

    In a group of two, values x and y have the std |x - y| / sqrt(2), so the advantages of 1 and 0
    are +-0.5 / (0.70711 + 1e-4) = +-0.70701.
    """
    rewards = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]])
    judged = torch.tensor([[True, False, False], [False, True, True], [True, True, True]])
    found = section_advantages(rewards, torch.ones(3), judged, 2)
    unit = 0.5 / (0.5 ** 0.5 + 1e-4)
    assert torch.allclose(found, torch.tensor([[unit, -unit, -unit], [-unit, unit, unit]]))
    # The weight of a reward counts beside the mean weight: 2 / (4 / 3) = 1.5 for a, 0.75 for b.
    weighted = section_advantages(rewards, torch.tensor([2.0, 1.0, 1.0]), judged, 2)
    assert torch.allclose(weighted[0], torch.tensor([1.5 * unit, -0.75 * unit, -0.75 * unit]), atol=1e-3)
    tokens = token_advantages(found, torch.tensor([[0, 0, 1, 2], [2, 1, 0, 0]]))
    assert torch.allclose(tokens, torch.tensor([[unit, unit, -unit, -unit], [unit, unit, -unit, -unit]]))


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_a_negative_weight_is_a_penalty_and_says_how_much_beside_the_others(scaling):
    """Of completions that differ in one reward alone, and by the same in each."""
    rewards, judged = torch.tensor([[0.0, 1.0], [1.0, 1.0]] * 2), torch.ones(2, 1, dtype=torch.bool)
    for weights in ([1.0, -0.5], [1.0, -1.0], [-1.0, 2.0], [-1.0, -1.0], [0.0, 0.0]):
        first, second = weights
        found = section_advantages(rewards, torch.tensor(weights), judged, 2, scaling)[:, 0]
        assert found.isfinite().all() and torch.equal(found.sign(), torch.tensor([-1.0, 1.0] * 2) * (
            (first > 0) - (first < 0)))
        swapped = section_advantages(rewards.flip(1), torch.tensor(weights), judged, 2, scaling)[:, 0]
        torch.testing.assert_close(swapped * first, found * second, rtol=1e-3, atol=1e-6)


def test_advantages_of_ones_own_go_with_credit_by_sequence_only(make_trainer, monkeypatch):
    class Own(ChainGRPOTrainer):
        def advantages(self, rewards):
            return rewards.sum(1)

    monkeypatch.setitem(make_trainer.__globals__, "ChainGRPOTrainer", Own)
    make_trainer()
    with pytest.raises(UserError, match="Own has advantages of its own.* --credit sequence"):
        make_trainer(credit="section")


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_one_reward_that_judges_everything_gives_the_published_advantages(scaling):
    rewards, weights = torch.rand(12, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7])
    found = section_advantages(rewards, weights, torch.ones(1, 4, dtype=torch.bool), 4, scaling)
    expected = group_advantages(rewards, weights, 4, scaling)
    assert torch.equal(found, expected[:, None].expand(-1, 4))


def test_the_rewards_judge_what_they_read():
    names = ["format", "degradation", "understanding", "generation", "fidelity", "progress"]
    images = ("rough_image", "middle_image", "final_image")
    assert judged_sections(names, ChainSpec.published()) == [
        None, ("degradation",), ("rough_understand",), images, images, images]


def trained(make_trainer, **changes) -> tuple[list[torch.Tensor], dict[str, float]]:
    trainer, _ = make_trainer(**changes)
    trainer.train()
    parameters = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    return parameters, trainer.state.log_history[0]


@pytest.mark.parametrize("share_prompts", [True, False])
def test_one_reward_for_the_whole_chain_makes_the_same_update(make_trainer, share_prompts):
    by_sequence, _ = trained(make_trainer, share_prompts=share_prompts)
    by_section, logs = trained(make_trainer, share_prompts=share_prompts, credit="section")
    assert all(torch.equal(*pair) for pair in zip(by_sequence, by_section, strict=True))
    assert logs["advantage/final_image"] == logs["advantage/degradation"] == logs["advantage/other"] > 0


def test_only_the_tokens_of_a_judged_section_are_pushed(make_trainer, processor, monkeypatch):
    trainer, _ = make_trainer(credit="section")
    names = processor.chain.names()
    trainer._judged = torch.tensor([[name == "rough_understand" for name in (*names, None)]])
    batches = []
    original = type(trainer)._compute_loss

    def seen(self, model, inputs):
        batches.append(inputs)
        return original(self, model, inputs)

    monkeypatch.setattr(type(trainer), "_compute_loss", seen)
    trainer.train()
    rows = [row for inputs in batches
            for row in zip(inputs["completion_ids"].tolist(), inputs["advantages"], strict=True)]
    pushed = False
    for ids, advantages in rows:
        place = processor.layout.chain_places(ids)[names.index("rough_understand")]
        inside = torch.zeros(len(ids), dtype=torch.bool)
        inside[place.start:place.stop] = True
        assert (advantages[~inside] == 0).all() and len(advantages[inside].unique()) == 1
        pushed |= bool((advantages[inside] != 0).all())
    assert pushed
