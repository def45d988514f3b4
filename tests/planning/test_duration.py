"""The plan's operations are those that torch runs; what limits a part follows from the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.models.protocol import Decoder, PackedRow
from realsr_r1.planning import duration
from realsr_r1.planning.machines import machine
from realsr_r1.planning.workload import Sharding, TokenizerShape

# Seconds are operations, or bytes
ONE_FLOP = machine(None, measured={"memory_gib": 1, "tflops": 1e-12, "bandwidth_gb": 1e-9})


def write(work, policy, steps: int, in_image: int, counter) -> Decoder:
    """What the engine does with the decoder for `steps` tokens, the first `in_image` of them codes
    with guidance.
    """
    rows, codes = work.generations, torch.arange(4, 4 + work.tokenizer.codes)
    prompt = [3] * work.prompt
    decoder = policy.make_decoder([prompt], torch.zeros(rows, dtype=torch.int64), steps, max(in_image, 1),
                                  codes)
    everyone = torch.arange(rows)
    with counter:
        for step in range(steps):
            inside = everyone if step < in_image else everyone[:0]
            states, free = decoder.step(torch.full((rows,), 5), inside, torch.full((len(inside),), step),
                                        step + 1)
            decoder.code_logits(torch.cat((states, free))) if len(inside) else decoder.logits(states)
    return decoder


def test_a_rollouts_operations_are_torchs(make_work, make_policy):
    work = make_work(expected=16, images=(10,), span=10, prompt=80,
                     tokenizer=TokenizerShape(0, (0, 0), 100, 8, 0.0))
    counter = FlopCounterMode(display=False)
    write(work, make_policy(work).eval(), 16, 10, counter)
    part = duration.rollout(work, ONE_FLOP)
    assert part.limits["compute"] == pytest.approx(counter.get_total_flops(), rel=0.05)


def product(own, left, right, **_) -> int:
    """Operations of `own += left @ right`, from shapes: torch's counter knows it under its other
    name only.
    """
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_losss_operations_are_torchs(checkpointing, make_work, make_policy):
    # Short beside its widths: the counter doesn't know CPU's fused attention.
    work = make_work(checkpointing=checkpointing, intermediate=1600, prompt=20, expected=15, vocabulary=4096,
                     layers=3)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})
    with FakeTensorMode():
        policy = make_policy(work).train()
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
        tokens = torch.randint(2, 9, (1, work.packed(14)))
        with counter:
            policy(input_ids=tokens, shared_prompts=PackedRow(((20, 3),), 14), fused_lm_head=True,
                   shift_labels=torch.randint(2, 9, (3, 15))).log_probs.sum().backward()
    # Recomputing may stop before a layer's last product, and the plan takes it whole.
    tolerance = 0.15 if checkpointing else 0.05
    assert duration.loss(work, ONE_FLOP).limits["compute"] == pytest.approx(counter.get_total_flops(),
                                                                            rel=tolerance)


def test_the_operations_that_are_started_are_the_decoders(make_work, make_policy, live_bytes):
    def started(layers: int) -> float:
        work = make_work(layers=layers, tokenizer=TokenizerShape(0, (0, 0), 100, 8, 0.0))
        live = live_bytes()
        write(work, make_policy(work).eval(), 4, 4, live)
        return live.operations / 4

    of_norms = 2 * 5  # what the two RMS norms of a layer take on a CPU beside the one that they are on a GPU
    assert started(3) - started(2) - of_norms == pytest.approx(duration.STEP_OPERATIONS_A_LAYER, rel=0.1)


def test_a_recorded_step_is_started_as_one_whatever_its_layers(make_work):
    def started(**values: object) -> float:
        work = make_work(expected=40, images=(6, 12, 20), **values)
        return duration.rollout(work, replace(ONE_FLOP, launch=1.0)).limits["starting operations"]

    assert started(layers=2, graphs=True) == started(layers=8, graphs=True, adapters=100) < started(layers=2)


def test_the_slowest_resource_limits_a_part(make_work):
    work = make_work(sharding=Sharding(3), world=4, expected=40, images=(6, 12, 20), weight_bytes=2)
    fast = {"memory_gib": 80, "tflops": 1e6, "bandwidth_gb": 1e9, "link_gb": 1e9, "launch_us": 1e-9}

    def limit(**slow: float) -> str:
        return duration.rollout(work, machine(None, 4, measured=fast | slow)).limit

    assert limit(tflops=1e-6) == "compute" and limit(bandwidth_gb=1e-3) == "memory bandwidth"
    assert limit(launch_us=1e6) == "starting operations"
    assert duration.gather(work, machine(None, 4, measured=fast | {"link_gb": 1e-3})).limit == "communication"


def test_what_is_sent_follows_zero(make_work):
    """Section 7 of arXiv 1910.02054: twice the weights for forward and backward, once the
    gradients, by (n - 1) / n.
    """
    work = make_work(sharding=Sharding(3), world=4, weight_bytes=2, micro=1)
    four = replace(ONE_FLOP, gpus=4, link=1.0)
    share = 2 * work.policy.parameters * 3 / 4
    assert duration.gather(work, four).limits["communication"] == share
    assert duration.loss(work, four).limits["communication"] == 3 * share * 3  # three microbatches
    assert duration.loss(replace(work, micro=3), four).limits["communication"] == 3 * share
    assert duration.gather(replace(work, sharding=Sharding(2)), four).seconds == 0
    two_machines = replace(ONE_FLOP, gpus=2, nodes=2, link=1.0, network=1.0)  # a GPU has half a network
    copied = replace(work, sharding=Sharding(3, copy_over=2), micro=3)
    assert duration.loss(replace(work, micro=3), two_machines).limits["communication"] == 3 * share / 0.5
    assert duration.loss(copied, two_machines).limits["communication"] == (share + share / 2 + share) / 0.5


def test_more_completions_cost_less_than_their_number_while_weights_are_what_is_read(make_work):
    work = make_work(hidden=1024, intermediate=4096, expected=100, images=(20, 30, 40), weight_bytes=2)
    one, five = (duration.rollout(replace(work, generations=count), machine("a100-80gb")).seconds
                 for count in (1, 5))
    assert one <= five < 1.5 * one
