"""Time of one rollout and of learning from it, by part, and what limits each part.

This is a roofline model (Williams et al. 2009). A part takes as long as the slowest of four things:
operations, bytes of the GPU's memory, bytes over links, and operations that the CPU must start.
They are assumed to overlap, so the result is a lower bound at the given rates.
"""

from __future__ import annotations

from dataclasses import dataclass

from realsr_r1.planning.experts import expert_cost
from realsr_r1.planning.machines import HOST_BANDWIDTH_GB, Machine
from realsr_r1.planning.memory import cache_bytes_a_token, states, trained_size, whole_weights
from realsr_r1.planning.workload import Workload

# The number of operations that torch starts in a decoder's `step`: for each layer, with or without
# unconditional rows, and for choosing a token (grammar, guidance, top-k, draw).
# tests/planning/test_duration.py counts them; an RMS norm is one on a GPU, and several on a CPU. With
# the attention's own kernels a layer has 14 (scripts/gpu_check.sh counts them on a GPU).
STEP_OPERATIONS_A_LAYER, KERNEL_STEP_OPERATIONS_A_LAYER, STEP_OPERATIONS = 38, 14, 120
TRAINING_OPERATIONS_A_LAYER = 60  # in a layer's forward; at these lengths they matter little


@dataclass(frozen=True)
class StepPart:
    """A part of a step, with the seconds that it would take if only one thing limited it.

    They are given as thing -> seconds; the slowest thing decides how long the part takes.
    """

    name: str
    limits: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.limits.values())

    @property
    def limit(self) -> str:
        """The thing that limits it."""
        return max(self.limits, key=self.limits.get)


def parts(work: Workload, machine: Machine) -> list[StepPart]:
    """Return the parts of one rollout on every GPU and of learning from it, in order.

    Those that take no time are left out.
    """
    found = [gather(work, machine), states_to_and_fro(work, machine), prefill(work, machine),
             rollout(work, machine), decode_and_score(work, machine), *scores_before(work, machine),
             loss(work, machine), update(work, machine)]
    return [part for part in found if part.seconds > 0]


def _part(name: str, machine: Machine, flops: float = 0.0, moved: float = 0.0, sent: float = 0.0,
          started: float = 0.0, host: float = 0.0) -> StepPart:
    return StepPart(name, {
        "compute": flops / machine.flops, "memory bandwidth": moved / machine.bandwidth,
        "communication": sent / machine.gather_rate, "starting operations": started * machine.launch,
        "transfers to the CPU": host / machine.host})


def _others(work: Workload) -> float:
    """Return the share of a whole that a process gets from the others in an all-gather.

    It gives the same share in a reduce-scatter.
    """
    return (work.world - 1) / work.world


def gather(work: Workload, machine: Machine) -> StepPart:
    """Under ZeRO-3, gather all weights once for each rollout.

    Offloaded weights come from the CPU first.
    """
    whole = whole_weights(work) if work.sharding.stage == 3 else 0.0
    return _part("gather weights", machine, sent=whole * _others(work),
                 host=whole / work.world if work.sharding.offload_parameters else 0.0)


def states_to_and_fro(work: Workload, machine: Machine) -> StepPart:
    """With `--offload_during_rollout`, copy the optimizer's states to the host and back."""
    leaving = states(work) if work.states_away else 0.0
    return _part("states to the host and back", machine, host=2 * leaving)


def _read_weights(work: Workload) -> float:
    """Return the bytes that are moved to multiply a small batch with all layers.

    bitsandbytes unpacks matrices for this: it reads, writes and reads again.
    """
    matrices = work.policy.matrix_parameters
    if work.quantised_bits == 4:
        return matrices * (0.5 + 2 * work.weight_bytes) + work.adapters * trained_size(work)
    return matrices * (work.quantised_bits / 8 or work.weight_bytes) + work.adapters * trained_size(work)


def _forward_flops(work: Workload, tokens: float, pairs: float) -> float:
    """Return the operations of a forward through the layers.

    They are 2 for each weight and token, and in every layer's attention 4 for each unit of width
    and pair of (query, key).
    """
    policy = work.policy
    return 2 * (policy.matrix_parameters + work.adapters) * tokens + 4 * policy.layers * policy.hidden * pairs


def prefill(work: Workload, machine: Machine) -> StepPart:
    """Compute each distinct prompt once."""
    tokens = work.prompts * work.prompt
    return _part("prefill", machine, flops=_forward_flops(work, tokens, tokens * work.prompt / 2),
                 moved=work.prompts * _read_weights(work),
                 started=work.prompts * TRAINING_OPERATIONS_A_LAYER * work.policy.layers)


def rollout(work: Workload, machine: Machine) -> StepPart:
    """Write completions, with one step for each token.

    A step has R rows, and R unconditional ones more inside images. It reads the layers' weights,
    the head's rows (all of them in text, those of the codes in images), the prompts' cache once,
    and what the rows' own caches hold so far.
    """
    policy, rows, steps, token = work.policy, work.rows, work.expected, cache_bytes_a_token(
        work.policy, work.weight_bytes, work.int8_caches)
    in_images = min(sum(work.images), steps)
    twice = in_images if work.span else 0
    # Rows of the head that are read, summed over all steps.
    codes, words = in_images * work.tokenizer.codes, (steps - in_images) * policy.vocabulary
    own = rows * steps**2 / 2 + (rows * sum(span**2 for span in work.images) / 2 if work.span else 0)
    row_steps = rows * (steps + twice)
    pairs = rows * steps * work.prompt + own
    of_head = 2 * policy.hidden * rows * ((2 if work.span else 1) * codes + words)
    flops = _forward_flops(work, row_steps, pairs) + of_head
    moved = (steps * (_read_weights(work) + work.prompts * work.prompt * token)
             + (codes + words) * policy.hidden * work.weight_bytes + own * token)
    # Of adapters, for each matrix two products.
    of_layer = ((KERNEL_STEP_OPERATIONS_A_LAYER if work.triton else STEP_OPERATIONS_A_LAYER)
                + (len(policy.matrices) * 2 if work.adapters else 0))
    of_policy = 1 if work.graphs else of_layer * policy.layers  # a graph is started as one
    return _part("rollout", machine, flops=flops, moved=moved, started=steps * (of_policy + STEP_OPERATIONS))


def decode_and_score(work: Workload, machine: Machine) -> StepPart:
    """Decode the images and let all experts score the final ones, in float32.

    The smaller images take 5/16 of the final images' decoding on top. Tensor cores multiply float32
    at about half (TF32) of bfloat16's rate at best, so the rate is halved here.
    """
    decoded = work.tokenizer.decode_flops * (1 + 1 / 4 + 1 / 16)
    scored = sum(expert_cost(name).image_flops for name in work.experts) * (work.largest_px / 512)**2
    return _part("images and experts", machine, flops=2 * work.rows * (decoded + scored))


def _scoring_pass(work: Workload) -> tuple[float, float]:
    """Return the operations of the layers' forward and of the head's over a whole rollout.

    Completions have their expected length.
    """
    tokens = work.packed(work.expected)
    pairs = 0.0
    for prompts, count in work.groups_of_micro:
        own = work.expected
        pairs += prompts * work.prompt**2 / 2 + count * (own * work.prompt + own**2 / 2)
    microbatches = work.rows / work.micro
    return (microbatches * _forward_flops(work, tokens, pairs),
            work.rows * 2.0 * work.expected * work.policy.head_parameters)


def _weights_sent(work: Workload) -> float:
    """Return the bytes that one pass over the layers gathers under ZeRO-3."""
    return whole_weights(work) * _others(work) if work.sharding.stage == 3 else 0.0


def scores_before(work: Workload, machine: Machine) -> list[StepPart]:
    """Return the extra forwards before learning.

    There is one for the reference (`beta` above 0), and one where TRL scores a rollout before it
    learns from it.
    """
    layers, scores = _scoring_pass(work)
    sent = _weights_sent(work) * work.rows / work.micro
    names = ["reference"] * work.reference + ["log-probabilities before"] * work.old_scores
    return [_part(name, machine, flops=layers + scores, sent=sent) for name in names]


def loss(work: Workload, machine: Machine) -> StepPart:
    """Forward and backward of all microbatches, as often as a rollout is learned from.

    A backward costs as much as two forwards, or one where only adapters are trained; checkpointing
    computes the layers' forward once more. The head needs its forward, its tiles again, and two
    products in the backward (one where the head isn't trained). In each microbatch, ZeRO sends
    weights for the forward and for the backward, and gradients once (arXiv 1910.02054, section 7).
    """
    layers, scores = _scoring_pass(work)
    passes = (2 if work.adapters else 3) + work.checkpointing
    head_passes = 3 if work.adapters else 4
    microbatches = work.rows / work.micro
    gradients = work.trained * trained_size(work) * _others(work)
    # With hpZ a backward gathers from the GPUs of its own machine.
    of_backward = machine.gather_rate / machine.link if work.sharding.copy_over > 1 else 1.0
    sent = (1 + of_backward) * _weights_sent(work) + gradients * (1 if work.sharding.stage else 2)
    host = whole_weights(work) / work.world * 2 if work.sharding.offload_parameters else 0.0
    host += work.trained * work.weight_bytes / work.world if work.sharding.offload_optimizer else 0.0
    return _part("loss", machine, flops=work.iterations * (passes * layers + head_passes * scores),
                 sent=work.iterations * microbatches * sent, host=work.iterations * microbatches * host)


def update(work: Workload, machine: Machine) -> StepPart:
    """AdamW reads and writes its states and weights, 28 bytes for each parameter.

    Offloaded ones are in the CPU's memory.
    """
    moved = work.updates * 28.0 * work.trained / (work.world if work.sharding.stage else 1)
    if not work.sharding.offload_optimizer:
        return _part("update", machine, moved=moved)
    on_host = moved * machine.gpus / (HOST_BANDWIDTH_GB * 1e9)  # the GPUs of a machine share its CPU
    return StepPart("update", {"the CPU's memory": on_host})
