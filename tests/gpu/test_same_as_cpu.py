"""A GPU gives what the CPU gives: random numbers, completions, losses; and image tokens don't wait.

Skipped where there is no GPU. `scripts/gpu_check.sh` runs them.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.models.lumina.policy import LuminaPolicy
from realsr_r1.rollout import RolloutConfig, RolloutEngine
from realsr_r1.rollout.sampling import uniforms
from realsr_r1.training.grpo.packing import pack_groups

from ..rollout.helpers import make_layout, make_policy, make_prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to compare with")

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
CHAIN = RolloutConfig(num_generations=3, max_new_tokens=135, image_top_k_max=200, grammar="chain",
                      max_text_tokens=6, seed=11, guidance_scale=0.8)


def test_random_numbers_are_the_cpus():
    rows = torch.tensor([0, 7, 2**40])
    expected = uniforms(3, 5, rows, 1000, draws=4)
    assert torch.equal(uniforms(3, 5, rows.cuda(), 1000, draws=4).cpu(), expected)


@pytest.mark.parametrize("hidden", [32, 64], ids=["torch's attention", "own kernels"])
@pytest.mark.parametrize("changes", [{}, {"cuda_graphs": True}, {"jacobi": 4},
                                     {"jacobi": 4, "cuda_graphs": True},
                                     {"cache_dtype": "int8", "cuda_graphs": True}],
                         ids=["plain", "graphs", "jacobi", "jacobi and graphs", "int8 caches"])
def test_completions_are_the_cpus(changes, hidden):
    """Heads of 8 numbers are too narrow for the kernels, heads of 16 are not."""
    config, policy = dataclasses.replace(CHAIN, **changes), make_policy(3, torch.float32, hidden_size=hidden)
    expected = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS)
    found = RolloutEngine(policy.cuda(), LAYOUT, config).generate(PROMPTS)
    assert found.completion_ids == expected.completion_ids and found.forwards == expected.forwards
    # A number on the edge between two steps of int8 may fall to either side.
    apart = torch.tensor(sum(found.log_q, [])).sub(torch.tensor(sum(expected.log_q, []))).abs().max()
    assert apart < (1e-2 if config.cache_dtype == "int8" else 1e-4)


@pytest.mark.parametrize("graphs", [False, True])
def test_inside_an_image_python_never_waits_for_the_gpu(graphs):
    """The only image has 46 tokens, and passes 10 to 30 are in it."""
    layout, passes = make_layout(untagged=(1.0,)), []

    def watch() -> None:
        passes.append(None)
        torch.cuda.set_sync_debug_mode("error" if 10 <= len(passes) < 30 else "default")

    engine = RolloutEngine(make_policy(3, torch.bfloat16, hidden_size=64).cuda(), layout,
                           dataclasses.replace(CHAIN, cuda_graphs=graphs))
    try:
        engine.generate(make_prompts(layout)[2], check=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(passes) > 40


def log_probs(policy: LuminaPolicy, prompt: list[int], completions: list[list[int]]) -> torch.Tensor:
    """What GRPO's loss says of completions of one length, (n, length)."""
    ids = torch.tensor([prompt + completion for completion in completions], device=policy.device)
    packed = pack_groups(ids, torch.ones_like(ids), len(completions[0]))
    return policy(input_ids=packed.input_ids, shared_prompts=packed.layout, shift_labels=packed.labels,
                  fused_lm_head=True).log_probs[:, -len(completions[0]):]


def adapted(dtype: torch.dtype) -> LuminaPolicy:
    """A small policy with adapters that do something, and the loss's head."""
    policy = get_peft_model(make_policy(6, dtype, spread=0.05), LoraConfig(
        target_modules=["q_proj", "v_proj", "up_proj"], r=4), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data.copy_(values)
    policy = policy.base_model.model.train()
    add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
    return policy


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_a_lora_steps_loss_and_gradients_are_the_cpus(dtype, error):
    completions = [[30, 31, 32, 33, 2], [26, 27, 28, 29, 2]]
    losses, gradients = [], []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        policy = adapted(kind).to(device)
        loss = -log_probs(policy, PROMPTS[0], completions).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.float().cpu().flatten() for name, parameter in
                                    policy.named_parameters() if "lora_" in name]))
    assert losses[1] == pytest.approx(losses[0], rel=error)
    assert (gradients[1] - gradients[0]).norm() < 3 * error * gradients[0].norm()


def test_a_bfloat16_rollout_draws_from_what_the_loss_says():
    """Rollout and loss compute the same policy in other orders; the ratio of GRPO is 1 but for that."""
    policy = make_policy(7, torch.bfloat16, spread=0.05, hidden_size=64).cuda()
    config = dataclasses.replace(CHAIN, guidance_scale=1.0, text_top_k=46, image_top_k_min=16,
                                 image_top_k_max=16)
    written = RolloutEngine(policy, make_layout(untagged=(None,)), dataclasses.replace(
        config, num_generations=1)).generate(PROMPTS[0])
    add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
    [ids], [log_q], [sampled] = written.completion_ids, written.log_q, written.sampled_mask
    with torch.no_grad():
        [found] = log_probs(policy, PROMPTS[0], [ids]).tolist()
    # The grammar leaves 13 of the 46 ids, so the rollout's probabilities are larger by one factor each.
    apart = [drawn - said for drawn, said, choice in zip(log_q, found, sampled, strict=True) if choice]
    assert all(difference > -0.05 for difference in apart)
