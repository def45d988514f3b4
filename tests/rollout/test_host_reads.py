"""How often Python waits for the device: once a token in text, never inside an image.

Counted on a CPU by what would make it wait for a GPU: reading a number or a list of a tensor, and
looking for the places where a condition holds, whose number decides a shape.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts

aten = torch.ops.aten
CONFIG = RolloutConfig(num_generations=3, max_new_tokens=120, max_text_tokens=100, grammar="chain", seed=2)


class HostReads(TorchDispatchMode):
    """`count`: the reads inside `with`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.count, as_list = 0, torch.Tensor.tolist

        def tolist(tensor):  # doesn't go through the dispatcher on a CPU
            self.count += 1
            return as_list(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        self.count += by_mask or function in (aten._local_scalar_dense.default, aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def reads(config: RolloutConfig, untagged, prompt: int, monkeypatch) -> tuple[int, int]:
    """Reads of a rollout of a chain without tags, and its tokens."""
    layout = make_layout(untagged=untagged)
    engine = RolloutEngine(make_policy(3, spread=0.02), layout, config)
    with HostReads(monkeypatch) as counter:
        written = engine.generate(make_prompts(layout)[prompt])
    return counter.count, max(map(len, written.completion_ids))


def test_the_counter_sees_a_rollout_that_asks_at_every_token(monkeypatch):
    """With images there are few tokens to ask at, so a loop that asks at each would show."""
    count, tokens = reads(dataclasses.replace(CONFIG, jacobi=2), (1.0,), 2, monkeypatch)
    assert count > tokens / 2


def test_text_is_written_with_one_read_a_token(monkeypatch):
    count, tokens = reads(dataclasses.replace(CONFIG, text_top_k=1), (None,), 0, monkeypatch)
    assert tokens > 60
    assert count <= tokens + 20


@pytest.mark.parametrize("guidance", [1.0, 0.8])
def test_reads_dont_grow_with_an_image(guidance, monkeypatch):
    config = dataclasses.replace(CONFIG, guidance_scale=guidance)
    (few, short), (many, long) = (reads(config, (1.0,), prompt, monkeypatch) for prompt in (0, 2))
    assert long > 3 * short and few == many
