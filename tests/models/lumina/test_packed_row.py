"""A packed row with shared prompts gives the states and gradients of the rows on their own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import modeling_flash_attention_utils

from realsr_r1.models.lumina.packed_row import masks
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy
from realsr_r1.models.protocol import PackedRow
from realsr_r1.training.grpo.packing import IGNORED, pack_groups

PAD = 1
PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15])
COMPLETIONS = ([[20, 21, 22, 23], [24, 25], [26, 27, 28]], [[29, 30, 31, 32], [33]])


def make_policy(attention: str = "sdpa", **changes) -> LuminaPolicy:
    torch.manual_seed(0)
    policy = LuminaPolicy._from_config(LuminaConfig(**{**dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=PAD), **changes}),
                                       attn_implementation=attention)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as TRL pads them: prompts at the left, completions at the right; ids and mask, (5,
    11 + 1).
    """
    rows = [(prompt, completion) for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True)
            for completion in group]
    longest = max(len(prompt) for prompt in PROMPTS)
    ids = torch.full((len(rows), longest + 5), PAD)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(rows):
        place = slice(longest - len(prompt), longest + len(completion))
        ids[row, place] = torch.tensor(prompt + completion)
        mask[row, place] = 1
    return ids, mask


def chosen(policy: LuminaPolicy, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the labels, 0 where there is none."""
    log_probs = policy.lm_head(states).log_softmax(-1)
    return log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == IGNORED, 0.0)


def alone(policy: LuminaPolicy) -> torch.Tensor:
    """The same, a row at a time, without any padding."""
    rows = []
    for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
        for completion in group:
            states = policy.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[
                :, len(prompt) - 1:-1]
            row = chosen(policy, states, torch.tensor([completion]))
            rows.append(torch.nn.functional.pad(row, (0, 4 - len(completion))))
    return torch.cat(rows)


@pytest.mark.parametrize("changes", [
    {}, {"attention": "eager"}, {"num_key_value_heads": 2}, {"num_key_value_heads": 2, "attention": "eager"},
    {"swin_norm": True}, {"model_parallel_size": 2}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("masks_of", ["cpu", "cuda"])
def test_log_probabilities_and_gradients_are_those_of_the_rows_alone(changes, checkpointing, masks_of,
                                                                     monkeypatch):
    # The masks that a GPU would be given, on the CPU; for eager attention they are the same tables.
    device = torch.device("cpu" if changes.get("attention") == "eager" else masks_of)
    like = SimpleNamespace(dtype=torch.float32, device=device)
    monkeypatch.setattr("realsr_r1.models.lumina.policy.masks",
                        lambda config, layout, embeddings: masks(config, layout, like))
    policy = make_policy(**changes)
    expected = alone(policy)
    weights = torch.randn(expected.shape)
    gradients = torch.autograd.grad((expected * weights).sum(), list(policy.parameters()))
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    packed = pack_groups(*padded(), completion_length=5)
    # Prompts once, no completion's last token
    assert packed.input_ids.shape[1] == sum(map(len, PROMPTS)) + 5 * 3
    states = policy.model(input_ids=packed.input_ids, shared_prompts=packed.layout,
                          use_cache=False).last_hidden_state
    found = chosen(policy, states, packed.labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(torch.autograd.grad((found * weights).sum(), list(policy.parameters())), gradients,
                         strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_completions_of_one_token_need_no_forward_of_their_own():
    policy = make_policy()
    prompt = torch.tensor([PROMPTS[0]])
    expected = policy.model(input_ids=prompt).last_hidden_state[0, -1]
    ids = torch.cat((prompt.expand(2, -1), torch.tensor([[20], [21]])), dim=1)
    packed = pack_groups(ids, torch.ones_like(ids), completion_length=1)
    assert torch.equal(packed.input_ids, prompt)
    states = policy.model(input_ids=packed.input_ids, shared_prompts=packed.layout,
                          use_cache=False).last_hidden_state
    torch.testing.assert_close(states, expected.expand(2, 1, -1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("swin_norm", [False, True])
def test_samples_side_by_side_see_only_themselves(attention, swin_norm):
    policy = make_policy(attention, swin_norm=swin_norm)
    # The last two of one length
    samples = [*PROMPTS, [40], [41, 42], PROMPTS[0], [43, 44, 45, 46, 47, 48, 49]]
    expected = torch.cat([policy(input_ids=torch.tensor([sample])).logits[0] for sample in samples])
    row = torch.tensor([[token for sample in samples for token in sample]])
    layout = PackedRow.of_samples(len(sample) for sample in samples)
    found = policy(input_ids=row, shared_prompts=layout, use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flash_attention_is_asked_for_by_its_own_name(monkeypatch):
    """In place of the package, which needs a GPU: its function, computed by torch, under the names
    transformers imports.
    """
    def flash(query, key, value, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        assert causal and window_size == (-1, -1)
        seen = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril(key.shape[1] - query.shape[1])
        # FlashAttention's are (B, T, heads, head_dim)
        states = (states.transpose(1, 2) for states in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=seen,
                                                                scale=softmax_scale).transpose(1, 2)

    asked = []

    def imports(implementation, *_, **__):
        asked.append(implementation)
        return flash, flash, None, None, None

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", imports)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    policy, truth = make_policy(), make_policy()
    policy.config._attn_implementation = "flash_attention_2"
    packed = pack_groups(*padded(), 5)
    states = policy.model(input_ids=packed.input_ids, shared_prompts=packed.layout).last_hidden_state
    found = chosen(policy, states, packed.labels)
    torch.testing.assert_close(found[:, :4], alone(truth), rtol=1e-5, atol=1e-5)
    plain = torch.tensor([PROMPTS[0] + COMPLETIONS[0][0]])
    torch.testing.assert_close(policy(input_ids=plain).logits, truth(input_ids=plain).logits, rtol=1e-5,
                               atol=1e-5)
    assert set(asked) == {"flash_attention_2"}
