"""Memory of one GPU at each phase of a GRPO step, by part, in bytes.

Each formula says which tensors it counts; tests hold them against what torch allocates. Knows sizes
only (`workload.Workload`); no machine, no time. The optimizer is AdamW.
"""

from __future__ import annotations

from realsr_r1.chain.processor import MAX_BATCH_PIXELS
from realsr_r1.models.protocol import PolicyShape
from realsr_r1.planning.experts import expert_cost
from realsr_r1.planning.workload import Workload

Parts = dict[str, float]  # part -> bytes

# TRL's chunked head (trl.kernels.chunked_logprob) has one tile of scores, which it uses again for
# all tokens and all of the vocabulary.
TILE_TOKENS, TILE_COLUMNS = 4096, 32_768
# The number of float32 copies of a tile that the backward holds where torch computes it (measured
# on a CPU). Triton needs none.
TORCH_TILES = 7.25
# CUDA's context with its libraries, and with several GPUs the buffers of NCCL's communicators (two
# under DeepSpeed). Estimates, not measured: 0.5 to 1 GiB, and 1 to 1.5 GiB more.
CONTEXT_BYTES, COMMUNICATORS_BYTES = 1.0 * 2**30, 1.0 * 2**30


def phases(work: Workload) -> dict[str, Parts]:
    """Return what is held at the peak of each phase: phase -> part -> bytes.

    Parts of 0 bytes are left out. `prefill`: computing prompts. `rollout`: writing completions.
    `images`: decoding their images. `scoring`: experts. `loss`: forward and backward. `update`: the
    optimizer's step.
    """
    held = resident(work)
    writing = held | {"optimizer": 0.0} if work.states_away else held
    everything = {"prefill": _sum(writing, gathered(work) | prefill(work)),
                  "rollout": _sum(writing, gathered(work) | rollout(work)),
                  "images": _sum(held, decoding(work)), "scoring": _sum(held, scoring(work)),
                  "loss": _sum(held, loss(work)), "update": _sum(held, update(work))}
    return {phase: {part: count for part, count in parts.items() if count}
            for phase, parts in everything.items()}


def peak(work: Workload) -> tuple[str, float]:
    """Return the phase that needs most, and its bytes."""
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
    """Return the bytes of the policy's own weights, not spread over GPUs.

    In b bits a matrix takes b/8 bytes for each weight. In 4 bits there is also a scale for each 64
    weights: 4 bytes, or with nested quantisation 1 byte, and 4 more for each 256 scales
    (arXiv 2305.14314, section 3). The other weights aren't quantised.
    """
    policy = work.policy
    if not work.quantised_bits:
        return policy.parameters * work.weight_bytes
    scales = {4: (1 + 4 / 256) / 64 if work.nested else 4 / 64, 8: 0.0}[work.quantised_bits]
    rest = policy.parameters - policy.matrix_parameters
    return policy.matrix_parameters * (work.quantised_bits / 8 + scales) + rest * work.weight_bytes


def trained_size(work: Workload) -> int:
    """Return the bytes of a trained parameter.

    DeepSpeed casts adapters to the weights' type. Otherwise they are float32, and on quantised
    weights bfloat16 (TRL).
    """
    if not work.adapters or work.sharding.stage:
        return work.weight_bytes
    return 2 if work.quantised_bits else 4


def whole_weights(work: Workload) -> float:
    """Return the bytes of the policy with its adapters, not spread over GPUs."""
    return base_bytes(work) + work.adapters * trained_size(work)


def resident(work: Workload) -> Parts:
    """Return what is held through the whole step.

    ZeRO (arXiv 1910.02054) spreads gradients and optimizer states over the processes in stage 2,
    and weights too in stage 3. Under DeepSpeed gradients have the weights' type, or float32 where
    several microbatches' are added up (`training.run_settings`), and AdamW keeps a float32 copy of
    the weights besides its two states: 12 bytes for each trained parameter. Plain torch keeps
    gradients and two states in the weights' type, and with several processes DDP's buckets, which
    are as large as the gradients. Offloaded parts are in the CPU's memory.
    """
    zero, trained, world, size = work.sharding, work.trained, work.world, trained_size(work)
    gradients = trained * (4 if zero.stage and work.accumulates else size)
    share = 1 / world if zero.stage else 1
    copies = 2 if not zero.stage and world > 1 else 1
    spread = 0 if zero.offload_parameters else 1 / world if zero.stage == 3 else 1
    again = 1 / zero.copy_over if zero.stage == 3 and zero.copy_over > 1 else 0  # hpZ's second partition
    return {
        "weights": whole_weights(work) * (spread + again),
        "gradients": 0.0 if zero.offload_optimizer else gradients * share * copies,
        "optimizer": 0.0 if zero.offload_optimizer else states(work),
        "reference": base_bytes(work) * spread if work.reference and not work.adapters else 0.0,
        "image tokenizer": work.tokenizer.parameters * 4.0,  # float32, on every GPU
        "experts": sum(expert_cost(name).parameters for name in work.experts) * 4.0,
        "CUDA, NCCL": (CONTEXT_BYTES + COMMUNICATORS_BYTES * (world > 1)) if work.triton else 0.0,
    }


def states(work: Workload) -> float:
    """Return the bytes of one process' share of the optimizer's states; see `resident`."""
    if not work.sharding.stage:
        return 2.0 * work.trained * trained_size(work)
    return 12.0 * work.trained / work.world


def gathered(work: Workload) -> Parts:
    """Under ZeRO-3, a rollout has the whole policy on every GPU, besides the GPU's own part."""
    return {"gathered weights": whole_weights(work) if work.sharding.stage == 3 else 0.0}


def cache_bytes_a_token(policy: PolicyShape, size: int, int8_caches: bool) -> int:
    """Return the bytes of the keys and values of one token of one row, in all layers.

    `size`: bytes of a number. As int8 they have a float32 scale for each head.
    """
    width = policy.kv_width + 4 * policy.kv_heads if int8_caches else policy.kv_width * size
    return 2 * policy.layers * width


def prefill(work: Workload) -> Parts:
    """Return what the decoder needs to compute prompts; see `computing_prompts`."""
    return computing_prompts(work.policy, work.weight_bytes, work.prompts, work.prompt)


def computing_prompts(policy: PolicyShape, size: int, prompts: int, prompt: int) -> Parts:
    """Return what computing prompts of `prompt` tokens, one after the other, needs.

    There are the prompts' caches in the policy's type, and one layer's forward. The MLP's forward
    holds four tensors of its width, and two of the layer's width stay besides them. After that the
    caches are joined, two layers at a time.
    """
    caches = float(prompts * prompt * cache_bytes_a_token(policy, size, int8_caches=False))
    forward = prompt * size * (4 * policy.intermediate + 4 * policy.hidden)
    return {"cache: prompts": caches, "activations": max(forward, caches * 2 / policy.layers)}


def rollout(work: Workload) -> Parts:
    """Return what the decoder needs; see `decoder`."""
    return decoder(work.policy, work.tokenizer.codes, work.weight_bytes, rows=work.rows, prompts=work.prompts,
                   prompt=work.prompt, completion=work.completion, span=work.span,
                   int8_caches=work.int8_caches, has_kernels=work.triton)


def decoder(policy: PolicyShape, codes: int, size: int, *, rows: int, prompts: int, prompt: int,
            completion: int, span: int, int8_caches: bool, has_kernels: bool) -> Parts:
    """Return what the decoder needs: full caches, and the largest temporaries of one step.

    Prompts are cached once each, completions as R rows x budget, and unconditional branches as R
    rows x longest span. The head's rows of the codes are copied. A step's scores over prompt and
    budget exist four times in float32, and as weights of the values in their type. The vocabulary's
    scores for R rows exist once in their own type and twice in float32, with a mask. Without the
    GPU's kernels a layer's int8 caches are widened before they are used, by way of float32. `size`:
    bytes of a weight. Lengths are in tokens.
    """
    token, columns = cache_bytes_a_token(policy, size, int8_caches), prompt + completion + span
    widened = 0
    if int8_caches and not has_kernels:
        parts = prompts * prompt, rows * completion, rows * span
        widened = policy.kv_width * (2 * size * sum(parts) + 4 * max(parts))
    return {
        "cache: prompts": prompts * prompt * token,
        "cache: completions": rows * completion * token,
        "cache: unconditional": rows * span * token,
        "activations": rows * policy.heads * columns * (4 * 4 + size * (size < 4)) + widened,
        "logits": codes * policy.hidden * size + rows * policy.vocabulary * (size + 2 * 4 + 1),
    }


def decoding(work: Workload) -> Parts:
    """Return what the image tokenizer's decoder needs where it is widest.

    That is in its last level, in full size and float32. Three maps are held at a time: a block's
    input, what is convolved, and the result. They have the channels of the level below where those
    are more. All final images of a rollout are one batch of up to `MAX_BATCH_PIXELS`.
    """
    pixels = work.largest_px**2
    images = max(1, min(work.rows, MAX_BATCH_PIXELS // pixels))
    return {"activations": images * pixels * 4.0 * 3 * max(work.tokenizer.channels)}


def scoring(work: Workload) -> Parts:
    """Return what the largest expert needs for the group's final images, one batch for each expert.

    It was measured for 512 px (`experts`).
    """
    share = work.largest_px**2 / 512**2
    largest = max((expert_cost(name).image_bytes for name in work.experts), default=0.0)
    return {"activations": work.rows * share * largest}


def saved_by_a_layer(work: Workload, completion: int) -> float:
    """Return what one layer keeps for its backward, in a microbatch of this completion length.

    For each token: both RMS norms' input in float32 and their two products; inputs and results of
    the q and k norms; q, k and v; the attention's result and its copy in the packed row; four
    tensors of the MLP's width; statistics of norms and softmax. A group with a shared prompt also
    keeps keys and values of prompt + completion for each completion. Without FlashAttention the
    mask of completion x (prompt + completion) is kept, the only term that isn't linear in length.
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
    """Return what is kept between forward and backward.

    With checkpointing that is every layer's input, otherwise all that layers save.
    """
    if work.checkpointing:
        return work.policy.layers * work.packed(completion) * work.policy.hidden * work.weight_bytes
    return work.policy.layers * saved_by_a_layer(work, completion)


def backward_of_a_layer(work: Workload, completion: int) -> float:
    """Return what comes on top of what is kept, during the backward of the last layer's MLP.

    There are three gradients of the MLP's width and one of the layer's. With checkpointing the
    layer is computed again, and has freed one tensor of the MLP's width by then.
    """
    policy = work.policy
    widths = (2 if work.checkpointing else 3) * policy.intermediate + policy.hidden
    recomputed = saved_by_a_layer(work, completion) if work.checkpointing else 0.0
    return recomputed + work.packed(completion) * work.weight_bytes * widths


def last_states(work: Workload, completion: int) -> float:
    """Return what is held after the layers.

    There are the last norm's input in float32, its two products, and the completions' gathered
    states.
    """
    size, hidden = work.weight_bytes, work.policy.hidden
    return hidden * (work.packed(completion) * (4 + 2 * size) + work.micro * (completion + 1) * size)


def head(work: Workload, completion: int) -> float:
    """Return what TRL's chunked head holds in its backward.

    There are one tile, and float32 gradients of its input and (if trained) of its weights. The tile
    has at most `TILE_TOKENS` x `TILE_COLUMNS`, so no term grows with length x vocabulary. In the
    end the weights' gradient is copied into their type; torch's copies of a tile are freed by then.
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
    """Return what DeepSpeed holds during the computation.

    There are gathered weights (stage 3) and buckets of gradients to be sent. At most `max_live`
    parameters are gathered, but at least the largest tensor. Under autocast torch keeps a bfloat16
    copy of every weight.
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
    """Return what forward and backward of one microbatch need, at the longest completions.

    The head's backward or a layer's backward counts, whichever is larger.
    """
    completion = work.completion
    kept = kept_by_layers(work, completion)
    in_layer = kept + backward_of_a_layer(work, completion)
    in_head, scores = kept + last_states(work, completion), head(work, completion)
    if in_layer > in_head + scores:
        return live_parameters(work) | {"activations": in_layer}
    return live_parameters(work) | {"activations": in_head, "logits": scores}


def update(work: Workload) -> Parts:
    """Return what DeepSpeed's step adds: float32 gradients of the part it updates.

    This part is a `sub_group` (stage 3), or all that the process owns (stage 2).
    """
    zero = work.sharding
    if not zero.stage or zero.offload_optimizer:
        return {}
    part = work.trained / work.world
    return {"gradients": 4.0 * (min(part, zero.sub_group) if zero.stage == 3 else part)}
