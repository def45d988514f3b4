"""Small policies with the workload that describes them, and the counter of torch's allocations."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from realsr_r1.models import new_config
from realsr_r1.models.protocol import PolicyShape
from realsr_r1.planning.workload import Sharding, TokenizerShape, Workload

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"))
from live_bytes import LiveBytes  # noqa: E402

sys.path.pop(0)
WORK = Workload(
    policy=PolicyShape(64, 160, 2, 4, 4, 512), tokenizer=TokenizerShape(0, (0, 0), 0, 8, 0.0),
    sharding=Sharding(), world=1, prompt=60, completion=40, expected=40, images=(6, 12, 20), largest_px=48,
    prompts=1, generations=3, micro=3, iterations=1, updates=1.0, span=0, checkpointing=False,
    share_prompts=True, flash=False, weight_bytes=4, autocast=False,
    trained=0, adapters=0, quantised_bits=0, nested=False, reference=False, old_scores=False, experts=(),
    triton=False)


@pytest.fixture
def live_bytes() -> type[LiveBytes]:
    """See scripts/benchmarks/live_bytes.py."""
    return LiveBytes


@pytest.fixture
def make_work():
    """A small run on one process; keywords are fields of `Workload` or of its `PolicyShape`."""
    def make(**values) -> Workload:
        sizes = {field.name for field in dataclasses.fields(PolicyShape)}
        policy = dataclasses.replace(WORK.policy,
                                     **{name: value for name, value in values.items() if name in sizes})
        others = {name: value for name, value in values.items() if name not in sizes}
        return dataclasses.replace(WORK, **{"policy": policy, "trained": policy.parameters, **others})

    return make


@pytest.fixture
def make_policy():
    """The policy that a workload describes, with random weights in its type."""
    def make(work: Workload) -> PreTrainedModel:
        torch.manual_seed(0)
        shape = work.policy
        return AutoModelForCausalLM.from_config(new_config(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, max_position_embeddings=16_384, pad_token_id=1),
                                                dtype=torch.float32 if work.weight_bytes == 4
                                                else torch.bfloat16)

    return make
