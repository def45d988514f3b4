"""Memory of one GPU at each phase of a GRPO step, by part, in bytes.

Each formula says which tensors it counts; tests hold them against what torch allocates. Knows sizes
only (`workload.Workload`); no machine, no time. The optimizer is AdamW.
"""

from __future__ import annotations

from realsr_r1.chain.processor import MAX_BATCH_PIXELS
from realsr_r1.planning.experts import expert_cost
from realsr_r1.planning.workload import Workload

Parts = dict[str, float]  # part -> bytes

# TRL's chunked head (trl.kernels.chunked_logprob): a tile of scores, reused for all tokens and all
# of the vocabulary.
TILE_TOKENS, TILE_COLUMNS = 4096, 32_768
# Copies of a tile in float32 that its backward holds where torch folds it: measured on CPU. Triton
# has none.
TORCH_TILES = 7.25
# CUDA's context with its libraries, and NCCL's buffers: some 0.5 to 1 GiB together on current
# drivers.
CONTEXT_BYTES = 1.0 * 2**30


def phases(work: Workload) -> dict[str, Parts]:
    """What is held at the peak of each phase: phase -> part -> bytes, parts that are 0 left out.

    `prefill`: computing prompts. `rollout`: writing completions. `images`: decoding theirs
    (parameters are still gathered). `scoring`: experts. `loss`: forward and backward. `update`: the
    optimizer's step.
    """
    held = resident(work)
    everything = {"prefill": gathered(work) | prefill(work), "rollout": gathered(work) | rollout(work),
                  "images": gathered(work) | decoding(work), "scoring": scoring(work), "loss": loss(work),
                  "update": update(work)}
    everything = {phase: _sum(held, parts) for phase, parts in everything.items()}
    return {phase: {part: count for part, count in parts.items() if count}
            for phase, parts in everything.items()}


def peak(work: Workload) -> tuple[str, float]:
    """The phase that needs most, and its bytes."""
    totals = {phase: sum(parts.values()) for phase, parts in phases(work).items()}
    phase = max(totals, key=totals.get)
    return phase, totals[phase]


def _sum(*several: Parts) -> Parts:
    total: Parts = {}
    for parts in several:
        for part, count in parts.items():
            total[part] = total.get(part, 0.0) + count
    return total


def base_bytes(work: Workload) -> float:
    """The policy's own weights, whole.

    In b bits a matrix takes b/8 bytes a weight, and in 4 bits a scale for each 64 weights: 4 bytes,
    or with nested quantisation 1 byte and 4 more for each 256 of them (arXiv 2305.14314, section
    3). The rest isn't quantised.
    """
    policy = work.policy
    if not work.quantised_bits:
        return policy.parameters * work.weight_bytes
    scales = {4: (1 + 4 / 256) / 64 if work.nested else 4 / 64, 8: 0.0}[work.quantised_bits]
    rest = policy.parameters - policy.matrix_parameters
    return policy.matrix_parameters * (work.quantised_bits / 8 + scales) + rest * work.weight_bytes


def trained_size(work: Workload) -> int:
    """Bytes of a trained parameter.

    DeepSpeed casts adapters to the weights' type; else they are float32, on quantised weights
    bfloat16 (TRL).
    """
    if not work.adapters or work.sharding.stage:
        return work.weight_bytes
    return 2 if work.quantised_bits else 4


def whole_weights(work: Workload) -> float:
    """The policy with its adapters, not spread."""
    return base_bytes(work) + work.adapters * trained_size(work)


def resident(work: Workload) -> Parts:
    """What is held through the whole step.

    ZeRO (arXiv 1910.02054): stage 2 spreads gradients and optimizer states over the processes,
    stage 3 weights too. Under DeepSpeed gradients have the weights' type and AdamW keeps a float32
    copy of the weights beside its two states, 12 bytes a trained parameter. Plain torch: gradients
    and two states in the weights' type, and with several processes DDP's buckets, as large as the
    gradients. Offloaded parts rest in the CPU's memory.
    """
    zero, trained, world, size = work.sharding, work.trained, work.world, trained_size(work)
    gradients, states = trained * size, trained * (12 if zero.stage else 2 * size)
    share = 1 / world if zero.stage else 1
    copies = 2 if not zero.stage and world > 1 else 1
    spread = 0 if zero.offload_parameters else 1 / world if zero.stage == 3 else 1
    return {
        "weights": whole_weights(work) * spread,
        "gradients": 0.0 if zero.offload_optimizer else gradients * share * copies,
        "optimizer": 0.0 if zero.offload_optimizer else states * share,
        "reference": base_bytes(work) * spread if work.reference and not work.adapters else 0.0,
        "image tokenizer": work.tokenizer.parameters * 4.0,  # float32, on every GPU
        "experts": sum(expert_cost(name).parameters for name in work.experts) * 4.0,
        "CUDA context": CONTEXT_BYTES if work.triton else 0.0,
    }


def gathered(work: Workload) -> Parts:
    """Under ZeRO-3 a rollout has the whole policy on every GPU, beside its part."""
    return {"gathered weights": whole_weights(work) if work.sharding.stage == 3 else 0.0}


def cache_bytes_a_token(work: Workload) -> int:
    """Keys and values of one token of one row, in all layers."""
    return 2 * work.policy.layers * work.policy.kv_width * work.weight_bytes


def prefill(work: Workload) -> Parts:
    """The decoder, one prompt after another: their caches, copied once into one tensor, and one
    layer's forward.

    The MLP's forward holds four of its widths, and two of the layer's stay beside it.
    """
    policy, size = work.policy, work.weight_bytes
    return {"cache: prompts": 2 * work.prompts * work.prompt * cache_bytes_a_token(work),
            "activations": work.prompt * size * (4 * policy.intermediate + 4 * policy.hidden)}


def rollout(work: Workload) -> Parts:
    """The decoder: caches, made once at their full length, and the largest temporaries of one step.

    Prompts once each; completions R rows x budget; unconditional branches R rows x longest span.
    The head's rows of the codes are copied. A step's scores over prompt and budget exist in the
    weights' type three times and once in float32; the vocabulary's for R rows once in their own
    type and twice in float32, with a mask.
    """
    policy, rows, size = work.policy, work.rows, work.weight_bytes
    token = cache_bytes_a_token(work)
    columns = work.prompt + work.completion + work.span
    return {
        "cache: prompts": work.prompts * work.prompt * token,
        "cache: completions": rows * work.completion * token,
        "cache: unconditional": rows * work.span * token,
        "activations": rows * policy.heads * columns * (3 * size + 4),
        "logits": work.tokenizer.codes * policy.hidden * size + rows * policy.vocabulary * (size + 2 * 4 + 1),
    }


def decoding(work: Workload) -> Parts:
    """The image tokenizer's decoder at its widest: the last level, at full size (float32).

    There three maps are held at a time, of the channels that come from below where those are more:
    a block's input, what is convolved, and the result. All of a rollout's final images are one
    batch, up to `MAX_BATCH_PIXELS`.
    """
    pixels = work.largest_px**2
    images = max(1, min(work.rows, MAX_BATCH_PIXELS // pixels))
    return {"activations": images * pixels * 4.0 * 3 * max(work.tokenizer.channels)}


def scoring(work: Workload) -> Parts:
    """The expert that needs most for the group's final images, one batch an expert; measured for
    512 px (`experts`).
    """
    share = work.largest_px**2 / 512**2
    largest = max((expert_cost(name).image_bytes for name in work.experts), default=0.0)
    return {"activations": work.rows * share * largest}


def saved_by_a_layer(work: Workload, completion: int) -> float:
    """What one layer keeps for its backward, in a microbatch of this completion length.

    A token: both RMS norms' input in float32, their two products, inputs and results of q and k
    norms, q, k, v, the attention's result and its copy in the packed row; four widths of the MLP;
    statistics of norms and softmax. A group with a shared prompt also keeps keys and values of
    prompt + completion for each completion. Without FlashAttention the mask of completion x (prompt
    + completion) is kept, the one term that isn't linear in length.
    """
    policy, size, tokens = work.policy, work.weight_bytes, work.packed(completion)
    token = size * (9 * policy.hidden + 4 * policy.kv_width + 4 * policy.intermediate) + 8 * policy.hidden
    token += 8 + policy.heads * (4 * size + 4)
    total = float(tokens * token)
    if work.share_prompts:
        for _, count in work.groups_of_micro:
            total += 2 * size * policy.kv_width * count * (work.prompt + completion)
            total += 0 if work.flash else size * completion * (work.prompt + completion)
    if work.adapters and trained_size(work) > size:  # adapters in float32: each casts its input
        total += 4 * tokens * sum(inputs for inputs, _ in policy.matrices.values())
    return total


def kept_by_layers(work: Workload, completion: int) -> float:
    """Between forward and backward: every layer's input with checkpointing, else all that layers
    save.
    """
    if work.checkpointing:
        return work.policy.layers * work.packed(completion) * work.policy.hidden * work.weight_bytes
    return work.policy.layers * saved_by_a_layer(work, completion)


def backward_of_a_layer(work: Workload, completion: int) -> float:
    """On top of what is kept, while the last layer's MLP is gone through: gradients of its width
    and one of the layer's.

    Three are of the MLP's width. With checkpointing the layer is recomputed, and lets go of one of
    that width by then.
    """
    policy = work.policy
    widths = (2 if work.checkpointing else 3) * policy.intermediate + policy.hidden
    recomputed = saved_by_a_layer(work, completion) if work.checkpointing else 0.0
    return recomputed + work.packed(completion) * work.weight_bytes * widths


def last_states(work: Workload, completion: int) -> float:
    """After the layers: the last norm's input in float32, its two products, and the completions'
    states, gathered.
    """
    size, hidden = work.weight_bytes, work.policy.hidden
    return hidden * (work.packed(completion) * (4 + 2 * size) + work.micro * (completion + 1) * size)


def head(work: Workload, completion: int) -> float:
    """TRL's chunked head in its backward: one tile, float32 gradients of its input and (if trained)
    of its weights.

    The tile is `TILE_TOKENS` x `TILE_COLUMNS` at most: no term of length x vocabulary. In the end
    the weights' gradient is copied into their type; torch's copies of a tile are gone by then.
    """
    policy, size = work.policy, work.weight_bytes
    count = work.micro * (completion + 1)
    tokens = min(count, TILE_TOKENS)
    copies = 0 if work.triton else 4 * TORCH_TILES * min(TILE_COLUMNS, policy.vocabulary)
    gradient, cast = 4 * policy.head_parameters, size * policy.head_parameters * (size < 4)
    if work.adapters:
        gradient = cast = 0
    return tokens * TILE_COLUMNS * size + count * policy.hidden * 4 + gradient + max(tokens * copies, cast)


def live_parameters(work: Workload) -> Parts:
    """What DeepSpeed holds while it computes: gathered weights (stage 3), buckets of gradients on
    their way.

    Gathered are at most `max_live` parameters, but at least the largest tensor. Under autocast
    torch keeps a bfloat16 copy of every weight.
    """
    policy, zero = work.policy, work.sharding
    live = 0.0
    if zero.stage == 3:
        live = min(max(zero.max_live, policy.head_parameters), policy.parameters) * work.weight_bytes
    if work.autocast:
        live += 2.0 * policy.parameters
    bucket = policy.hidden**2 if zero.bucket is None else zero.bucket
    bucket = min(bucket, work.trained) * work.weight_bytes
    return {"gathered weights": live, "gradients": bucket * (2 if zero.overlap else 1) if zero.stage else 0.0}


def loss(work: Workload) -> Parts:
    """Forward and backward of one microbatch at the longest completions; the head's backward or a
    layer's, the larger.
    """
    completion = work.completion
    kept = kept_by_layers(work, completion)
    in_layer = kept + backward_of_a_layer(work, completion)
    in_head, scores = kept + last_states(work, completion), head(work, completion)
    if in_layer > in_head + scores:
        return live_parameters(work) | {"activations": in_layer}
    return live_parameters(work) | {"activations": in_head, "logits": scores}


def update(work: Workload) -> Parts:
    """DeepSpeed's step makes float32 gradients of the part it updates: a `sub_group` (stage 3), all
    it owns (stage 2).
    """
    zero = work.sharding
    if not zero.stage or zero.offload_optimizer:
        return {}
    part = work.trained / work.world
    return {"gradients": 4.0 * (min(part, zero.sub_group) if zero.stage == 3 else part)}
