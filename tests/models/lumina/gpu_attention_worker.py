"""What test_gpu_attention.py runs with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from realsr_r1.models.lumina import decoder, gpu_attention
from realsr_r1.models.lumina.torch_attention import TorchAttention

from ...rollout.helpers import CODES, make_layout, make_policy, make_prompts

PROMPTS = make_prompts(make_layout())


def written(kind, prompts, groups, passes, monkeypatch, kept=None, int8=False) -> list[torch.Tensor]:
    """States of what a decoder is fed: `groups` rows for each prompt, each row with a branch from its
    second pass on; passes of `passes` tokens, the rows at other places from the second on. Then only
    the rows `kept` stay for one pass more.
    """
    monkeypatch.setattr(decoder, "attention_for", lambda *_: kind)
    rows = torch.arange(len(prompts)).repeat_interleave(torch.tensor(groups))
    made = make_policy(3, torch.float32, hidden_size=32, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=1).make_decoder(
        prompts, rows, 64, 48, torch.tensor(CODES), int8_caches=int8)
    starts, found = torch.zeros_like(rows), []
    for number, n in enumerate([*passes, *([1] if kept is not None else [])]):
        if kept is not None and number == len(passes):
            made.keep_rows(kept)
            starts = starts[kept]
            made.keep_slots(kept, int(starts.max()))
        branches = torch.arange(len(starts) if number else 0)
        tokens = (torch.arange(len(starts) * n).view(-1, n) * 7 + number) % 40
        places = starts[branches] - passes[0] + 1
        found += made.feed(tokens, starts, int(starts.max()) + n, branches, places,
                           int(places.max()) + n if len(branches) else 0)
        starts = starts + n - (0 if n == 1 else torch.arange(len(starts)) % 2)
    return found


@pytest.mark.parametrize("int8", [False, True], ids=["as they are", "int8 caches"])
@pytest.mark.parametrize("prompts, groups, passes, kept", [
    (PROMPTS, [2, 2, 2], [1, 1], None),
    (PROMPTS, [3, 1, 2], [2, 3], torch.tensor([0, 2, 3])),
    (PROMPTS[1:2], [9], [4], None),
    (PROMPTS[:2], [1, 1], [17], None)],
    ids=["token by token", "unequal groups, rows that stay", "more queries than a block", "a forced text"])
def test_the_kernels_compute_what_torchs_functions_do(prompts, groups, passes, kept, int8, monkeypatch):
    expected = written(TorchAttention, prompts, groups, passes, monkeypatch, kept, int8)
    monkeypatch.setattr(gpu_attention, "PIECE", 32)
    monkeypatch.setattr(gpu_attention, "TILE_BYTES", 16 * 16 * 4)
    found = written(gpu_attention.GpuAttention, prompts, groups, passes, monkeypatch, kept, int8)
    assert len(found) == len(expected) > 0
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape and (mine - its).abs().max() < 1e-4 if its.numel() else True
