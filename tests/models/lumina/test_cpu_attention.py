"""Short samples in bfloat16 on a CPU: what their attention gives, what it sees, and when it is
used.
"""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode

from realsr_r1.models.lumina import cpu_attention
from realsr_r1.models.protocol import PackedRow

from .test_packed_row import make_policy

HEADS, HEAD_DIM, RUNS = 4, 16, [(5, 1), (37, 2), (200, 1)]  # tokens of a sample, and how many of that length


@pytest.mark.parametrize("key_value_heads", [4, 2])
# Queries and keys come from norms, float32 under autocast
@pytest.mark.parametrize("normed", [torch.bfloat16, torch.float32])
def test_values_and_gradients_are_those_of_torchs_attention(key_value_heads, normed):
    torch.manual_seed(0)
    tokens = sum(length * count for length, count in RUNS)
    exact = [torch.randn(tokens, heads, HEAD_DIM, requires_grad=True)
             for heads in (HEADS, key_value_heads, key_value_heads)]
    weights = torch.randn(tokens, HEADS, HEAD_DIM)
    samples = zip(*(states.split([length for length, count in RUNS for _ in range(count)])
                    for states in exact), strict=True)
    expected = torch.cat([torch.nn.functional.scaled_dot_product_attention(
        *(states.transpose(0, 1) for states in sample), is_causal=True, enable_gqa=True).transpose(0, 1)
                          for sample in samples])
    dtypes = normed, normed, torch.bfloat16
    rounded = [states.detach().to(dtype).requires_grad_()
               for states, dtype in zip(exact, dtypes, strict=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cpu_attention.attend(*rounded, RUNS, scaling=HEAD_DIM ** -0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    for mine, own in zip(torch.autograd.grad((found * weights).sum(), rounded),
                         torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(mine.float(), own, rtol=0, atol=0.02 * float(own.abs().max()))


def test_a_sample_sees_neither_its_neighbours_nor_what_comes_later(monkeypatch):
    calls = []
    attend = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda *args, **kwargs: calls.append(1)
                        or attend(*args, **kwargs))
    policy = make_policy()
    layout = PackedRow.of_samples((5, 4, 6))
    row = torch.arange(5, 20)[None]
    changed = row.clone()
    # The neighbours, and the middle sample's last token
    changed[0, :5], changed[0, 8], changed[0, 9:] = 40, 41, 42
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, after = (policy(input_ids=ids, shared_prompts=layout, use_cache=False).logits[0]
                         for ids in (row, changed))
    assert len(calls) == 2 * policy.config.num_hidden_layers
    assert torch.equal(before[5:8], after[5:8])
    assert not torch.equal(before[8], after[8])


def test_it_is_for_short_bfloat16_samples():
    values = torch.empty(8, 2, 4, dtype=torch.bfloat16)
    assert cpu_attention.suits(values, cpu_attention.SHORT)
    assert not cpu_attention.suits(values, cpu_attention.SHORT + 1)
    assert not cpu_attention.suits(values.float(), 8)


@pytest.mark.parametrize("changes", [{}, {"attention_dropout": 0.5}, {"attention": "eager"}], ids=str)
def test_only_torchs_attention_without_dropout_is_replaced(changes, monkeypatch):
    calls = []
    attend = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda *args, **kwargs: calls.append(1)
                        or attend(*args, **kwargs))
    policy = make_policy(**changes).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        policy(input_ids=torch.arange(5, 20)[None], shared_prompts=PackedRow.of_samples((9, 6)),
               use_cache=False)
    assert bool(calls) == (not changes)


def states(requires_grad=True):
    tokens = sum(length * count for length, count in RUNS)
    return [torch.randn(tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, requires_grad=requires_grad)
            for _ in range(3)]


def test_what_is_kept_for_the_backward_pass_is_bfloat16_under_autocast():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor,
                                                  lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cpu_attention.attend(*states(), RUNS, scaling=1.0)
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    # probabilities: queries and keys
    pairs = [tensor.shape[1:] for tensor in kept if tensor.shape[-1] != HEAD_DIM]
    assert sorted(pairs) == [(5, 5), (37, 37), (88, 200), (112, 112)]  # of what the mask hides, little


class Probabilities(TorchFunctionMode):
    """Counts how many blocks' probabilities are in memory at a time."""

    def __init__(self):
        super().__init__()
        self.made, self.most = [], 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.softmax:
            self.made.append(weakref.ref(result))
            self.most = max(self.most, sum(one() is not None for one in self.made))
        return result


@pytest.mark.parametrize("training", [False, True])
def test_without_a_backward_pass_no_probabilities_stay(training):
    with Probabilities() as probabilities:
        attended = cpu_attention.attend(*states(training), RUNS, scaling=1.0)
    assert len(probabilities.made) == 4
    assert probabilities.most == (4 if training else 2)  # two: the last block's until this one's are there
    assert attended.requires_grad == training


def test_a_row_with_a_long_sample_has_torchs_attention_and_the_same_values(monkeypatch):
    policy, row = make_policy(), torch.arange(5, 20)[None]
    layout = PackedRow.of_samples((9, 6))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        short = policy(input_ids=row, shared_prompts=layout, use_cache=False).logits
        monkeypatch.setattr(cpu_attention, "SHORT", 8)
        monkeypatch.setattr(cpu_attention, "attend",
                            lambda *args: pytest.fail("a sample of 9 tokens is too long"))
        long = policy(input_ids=row, shared_prompts=layout, use_cache=False).logits
    torch.testing.assert_close(long.float(), short.float(), rtol=0,
                               atol=0.03 * float(short.float().abs().max()))
