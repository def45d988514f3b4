"""What a GRPO run computes, in numbers: its models' shapes, lengths, batches, types and GPUs.

It reads them from a run's settings and a model's config files, without weights. `memory` and
`duration` compute what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Ge, Json, Number, TypedDict
from realsr_r1.models.protocol import PolicyShape
from realsr_r1.rollout.config import INT8

if TYPE_CHECKING:
    from trl import ModelConfig

    from realsr_r1.chain.settings import ChainSettings
    from realsr_r1.training.config import ChainGRPOConfig

QUESTION_TOKENS = 50  # tokens of a prompt besides its photo: the question and the turn's ends
# The size of a published vocabulary tells which image tokenizer belongs to it: its codes, their
# size, and the encoder's width multipliers. LlamaGen (arXiv 2406.06525) and Chameleon (arXiv
# 2405.09818) have 128 base channels, 2 residual blocks in each level and 256 latent channels.
PUBLISHED_TOKENIZERS: dict[int, dict[str, Any]] = {
    73_728: {"num_embeddings": 16_384, "embed_dim": 8, "channel_multiplier": [1, 2, 2, 4]},
    65_536: {"num_embeddings": 8192, "embed_dim": 256, "channel_multiplier": [1, 1, 2, 2, 4]},
}


@dataclass(frozen=True)
class TokenizerShape:
    """Sizes of an image tokenizer.

    They are its parameters, the channels at full and at half resolution, the number of codes, and
    the pixels along a code's side.
    """

    parameters: int
    channels: tuple[int, int]
    codes: int
    downsample: int
    decode_flops: float  # for one image of the chain's largest size

    @classmethod
    def of(cls, values: Mapping[str, Any], px: int, source: str = "the image tokenizer") -> TokenizerShape:
        """Compute the sizes from keys of `ImageTokenizerConfig`, on torch's meta device.

        `px`: the side of the largest image. Raises `UserError` that names `source` where the values
        make no image tokenizer.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from realsr_r1.models.image_tokenizer import empty_tokenizer

        model = empty_tokenizer(values, source)
        config, side = model.config, max(1, px // model.downsample)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model.decode(torch.zeros(1, side, side, dtype=torch.int64))
        multipliers = [*config.channel_multiplier, config.channel_multiplier[-1]]
        return cls(sum(parameter.numel() for parameter in model.parameters()),
                   (config.base_channels * multipliers[0], config.base_channels * multipliers[1]),
                   model.codebook_size, model.downsample, counter.get_total_flops())


Elements = Annotated[Number, Ge(1)] | Literal["auto"]


class Offload(TypedDict, total=False, extra_items=Json):
    """Where DeepSpeed keeps a part of the state."""

    device: Literal["none", "cpu", "nvme"]


class Zero(TypedDict, extra_items=Json):
    """`zero_optimization` of a DeepSpeed JSON, as far as a plan reads it."""

    stage: Literal[2, 3]
    offload_optimizer: NotRequired[Offload]
    offload_param: NotRequired[Offload]
    stage3_max_live_parameters: NotRequired[Elements]
    reduce_bucket_size: NotRequired[Elements]
    sub_group_size: NotRequired[Elements]
    overlap_comm: NotRequired[bool]
    zero_hpz_partition_size: NotRequired[Annotated[int, Ge(1)]]


class DeepSpeedFile(TypedDict, extra_items=Json):
    """A DeepSpeed JSON with ZeRO."""

    zero_optimization: Zero


@dataclass(frozen=True)
class Sharding:
    """What DeepSpeed spreads over the GPUs.

    `stage`: 2 or 3 of ZeRO (arXiv 1910.02054), 0 without DeepSpeed. The following count elements,
    not bytes. `max_live`: gathered at a time (stage 3). `bucket`: reduced at a time (None: hidden
    size squared). `sub_group`: updated at a time (stage 3). `copy_over`: the weights are spread a second time
    over so many neighbouring GPUs, from where backward passes gather them (hpZ of ZeRO++, arXiv
    2306.10209); 1: they aren't. See local_scripts/README.md.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    max_live: float = 1e9
    bucket: float | None = None
    sub_group: float = 1e9
    overlap: bool = False
    copy_over: int = 1

    @classmethod
    def read(cls, path: str | Path) -> Sharding:
        """Read a DeepSpeed JSON. Raises `UserError` that names the file when it isn't one."""
        zero = read_json(path, DeepSpeedFile, "take one of local_scripts, or --deepspeed none"
                         )["zero_optimization"]

        def number(key: str, default: float | None) -> float | None:
            value = zero.get(key, "auto")
            return default if value == "auto" else value

        def is_offloaded(key: str) -> bool:
            return zero.get(key, {}).get("device", "none") != "none"

        return cls(zero["stage"], is_offloaded("offload_optimizer"), is_offloaded("offload_param"),
                   number("stage3_max_live_parameters", 1e9), number("reduce_bucket_size", None),
                   number("sub_group_size", 1e9), bool(zero.get("overlap_comm")),
                   zero.get("zero_hpz_partition_size", 1))


@dataclass(frozen=True)
class Workload:
    """The work of one process of a run. Lengths are in tokens.

    `completion`: the length that caches are made for, which is the longest possible. `expected`:
    the length of a whole chain. `images`: the tokens of its images. `prompts`: distinct ones in a
    rollout, each with `generations` completions. `micro`: completions in one forward and backward.
    `trained`: the number of trained parameters. `weight_bytes`: bytes of a parameter.
    """

    policy: PolicyShape
    tokenizer: TokenizerShape
    sharding: Sharding
    world: int
    prompt: int
    completion: int
    expected: int
    images: tuple[int, ...]
    largest_px: int
    prompts: int
    generations: int
    micro: int
    iterations: int
    updates: float
    span: int  # tokens the caches of the unconditional branch are made for; 0 without guidance
    checkpointing: bool
    share_prompts: bool
    flash: bool
    weight_bytes: int
    autocast: bool  # matrices are computed in bfloat16 from float32 weights
    trained: int
    adapters: int  # parameters of LoRA adapters; 0 when all weights are trained
    quantised_bits: int  # bits of the layers' matrices; 0: not quantised
    nested: bool
    reference: bool
    old_scores: bool  # log-probabilities are scored once more before the loss
    experts: tuple[str, ...]
    int8_caches: bool = False
    graphs: bool = False  # the policy's steps are recorded as CUDA graphs
    accumulates: bool = False  # several microbatches' gradients are added up before an update
    states_leave: bool = False  # --offload_during_rollout: where it can be, see `states_away`
    triton: bool = True  # without it (CPU) torch computes the head's tiles, with several copies

    @property
    def rows(self) -> int:
        """The number of completions that one process writes at a time."""
        return self.prompts * self.generations

    @property
    def states_away(self) -> bool:
        """Whether the optimizer's states leave the GPU while rollouts are written."""
        return self.states_leave and self.sharding.stage != 2 and not self.sharding.offload_optimizer

    @property
    def groups_of_micro(self) -> list[tuple[int, int]]:
        """Return (number of copies, completions that share it) for each prompt in a microbatch.

        The microbatch is a packed row.
        """
        whole, rest = divmod(self.micro, self.generations)
        groups = [(1, self.generations)] * whole + [(1, rest)] * bool(rest)
        return groups if self.share_prompts else [(count, count) for _, count in groups]

    def packed(self, completion: int) -> int:
        """Return the tokens of a microbatch's row with completions of this length."""
        return sum(prompts * self.prompt + count * completion for prompts, count in self.groups_of_micro)


def workload(args: ChainGRPOConfig, model_args: ModelConfig, policy: PolicyShape, tokenizer: TokenizerShape,
             chain: ChainSettings, sharding: Sharding, world: int, text_tokens: int) -> Workload:
    """Return the numbers of a run with these settings on `world` processes.

    `args`: already in TRL's units. `text_tokens`: tokens of a chain besides its images. Raises
    `UserError` also for settings that grpo would refuse.
    """
    from realsr_r1.training.adapters import adapter_config

    adapters = _adapter_parameters(policy, adapter_config(model_args))
    bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else 0
    if bits and sharding.stage == 3:
        raise UserError("--load_in_4bit and --load_in_8bit don't go with DeepSpeed ZeRO-3; plan it with "
                        "--deepspeed local_scripts/zero2.json or --deepspeed none")
    if args.offload_during_rollout and (sharding.stage == 2 or sharding.offload_optimizer):
        from realsr_r1.training.config import STATES_LEAVE

        raise UserError(f"--offload_during_rollout {STATES_LEAVE}")
    units = max(1, chain.target_px // chain.grid_unit_px)
    # Only the geometry of this layout is used, not its ids.
    layout = TokenLayout(0, 0, 0, 0, 0, 0, {}, (), policy.vocabulary, chain.grid_unit_px,
                         tokenizer.downsample)
    images = tuple(layout.span_length(*size) for size in chain.chain.image_sizes(units, units))
    made = args.per_device_train_batch_size * args.steps_per_generation
    span = 0
    if args.guidance_scale != 1.0:  # with "image" a row may draw any size that fits the budget
        span = images[-1] if args.grammar == "chain" else args.max_completion_length
    is_half = args.bf16 if sharding.stage else model_args.dtype in ("bfloat16", "float16")
    passes = args.steps_per_generation * args.num_iterations
    return Workload(
        policy, tokenizer, sharding, world,
        prompt=min(images[-1] + QUESTION_TOKENS, args.max_prompt_length),
        completion=args.max_completion_length,
        expected=min(sum(images) + text_tokens, args.max_completion_length), images=images,
        largest_px=units * chain.grid_unit_px, prompts=max(1, made // args.num_generations),
        generations=args.num_generations, micro=args.per_device_train_batch_size,
        iterations=args.num_iterations, updates=passes / args.gradient_accumulation_steps,
        span=min(span, args.max_completion_length), checkpointing=bool(args.gradient_checkpointing),
        share_prompts=args.share_prompts, flash=(model_args.attn_implementation or "").startswith("flash"),
        weight_bytes=2 if is_half else 4, autocast=bool(args.bf16) and not is_half,
        trained=adapters or policy.parameters, adapters=adapters, quantised_bits=bits,
        nested=bool(model_args.use_bnb_nested_quant), reference=args.beta > 0,
        old_scores=args.gradient_accumulation_steps % passes != 0,
        int8_caches=args.cache_dtype == INT8, graphs=args.cuda_graphs,
        accumulates=args.gradient_accumulation_steps > 1, states_leave=args.offload_during_rollout,
        experts=tuple(args.experts or chain.experts)
        if {"generation", "progress"} & set(args.reward_funcs) else ())


def _adapter_parameters(policy: PolicyShape, config: Any | None) -> int:
    """Return the number of parameters of LoRA adapters: r rows and r columns for each matrix.

    See arXiv 2106.09685.
    """
    if config is None:
        return 0
    targets = policy.matrices if isinstance(config.target_modules, str) else config.target_modules
    return policy.layers * config.r * sum(sum(policy.matrices[name]) for name in targets)


def tokenizer_values(model: Path, policy: PolicyShape) -> dict[str, Any]:
    """Return keys of `ImageTokenizerConfig` for the image tokenizer of a model folder.

    Where the folder has none, they belong to the tokenizer that its vocabulary was published with.
    Raises `UserError` where neither is known.
    """
    from realsr_r1.models.loading import ConfigFile

    file = model / "image_tokenizer" / "config.json"
    if file.is_file():
        return dict(read_json(file, ConfigFile))
    if policy.vocabulary not in PUBLISHED_TOKENIZERS:
        raise UserError(f"{model} has no image_tokenizer folder, and a vocabulary of {policy.vocabulary:,} "
                        "is no published one; plan with a folder that realsr-r1 export or sft made")
    return {"base_channels": 128, "num_res_blocks": 2, "latent_channels": 256,
            **PUBLISHED_TOKENIZERS[policy.vocabulary]}
