"""Settings of the two training stages: TRL's and transformers' own, and those for the chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig

from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError
from realsr_r1.rewards.settings import RewardSettings, reward_field
from realsr_r1.rollout.config import RolloutConfig, rollout_field
from realsr_r1.training.grpo.guards import Condition
from realsr_r1.training.grpo.objective import AGGREGATIONS, CREDITS, LOSS_TYPES, SCALINGS
from realsr_r1.training.run_settings import RunSettings

CHAIN_SETTINGS_HELP = ("YAML or JSON file of chain settings (configs/chain) that count instead of the model "
                       "folder's: sections, sizes, and the question (problem). Where the file has a "
                       "question, all records are asked that.")
# Settings of GRPO's objective, and what they may be.
# Other DeepSpeed settings keep views of the states, or have them in the host's memory already.
STATES_LEAVE = ("goes with --deepspeed local_scripts/zero3.json or zero3_multinode.json, or without "
                "DeepSpeed; leave it out")
MOST = 2**24  # of prompts, records, sizes and steps that a setting counts
CHOICES = {"loss_type": LOSS_TYPES, "scale_rewards": SCALINGS,
           "multi_objective_aggregation": AGGREGATIONS,
           "importance_sampling_level": ("token", "sequence"), "credit": CREDITS}


@dataclass
class ColdStartConfig(RunSettings, TrainingArguments):
    """The settings of `realsr-r1 sft`: every field of `TrainingArguments`, and these.

    TRL's `ModelConfig` has the settings of the model.
    """

    dataset_name: str = field(default="", metadata={
        "help": "Folder of a prepared dataset (realsr-r1 create-json), of its tokens (realsr-r1 "
                "pretokenise), or a JSON of conversations in Lumina-mGPT's format."})
    max_samples: int | None = field(default=None, metadata={
        "help": "Train on this many records only, drawn with --seed."})
    chain_settings: str | None = field(default=None, metadata={"help": CHAIN_SETTINGS_HELP})
    z_loss: float = field(default=0.0, metadata={"help": "Weight of the mean of log²Z (Lumina-mGPT: 1e-5)."})
    dropout: float = field(default=0.0, metadata={
        "help": "Share that is dropped of what attention and MLP add to the residual stream (Lumina-mGPT and "
                "PURE: 0.05)."})
    zero_image_head: bool = field(default=False, metadata={
        "help": "Set the head's rows of the image codes to zero before the first step, as the published code "
                "does. What a run of this project has left (its folder, a checkpoint, an export) keeps them, "
                "as there."})
    sample_steps: int = field(default=500, metadata={
        "help": "Steps between chains that are written and decoded into output_dir/samples; 0 = none."})
    peak_tflops: float | None = field(default=None, metadata={
        "help": "Peak of one device in TFLOP/s, for MFU (A100: 312, H100: 989); by default measured with a "
                "matrix product."})
    max_length: int = field(default=11776, metadata={
        "help": "Longest prompt + chain, in tokens (PURE: 11,776)."})
    hidden_size: int = field(default=256, metadata={"help": "New policy only: width."})
    intermediate_size: int = field(default=512, metadata={"help": "New policy only: width of the MLP."})
    num_hidden_layers: int = field(default=6, metadata={"help": "New policy only: decoder layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "New policy only: attention heads."})
    remove_unused_columns: bool = field(default=False, metadata={
        "help": "Keep false: the collator needs all columns."})

    def __post_init__(self) -> None:
        """Raise `UserError` when the dataset is missing, and for values that can't work."""
        _require_dataset(self.dataset_name)
        _require_finite(self)
        _require_at_least_1(self, "per_device_train_batch_size", "per_device_eval_batch_size",
                            "gradient_accumulation_steps", "max_samples", "max_length", "hidden_size",
                            "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(f"--hidden_size {self.hidden_size} must be a multiple of twice the "
                            f"--num_attention_heads {self.num_attention_heads}")
        if self.remove_unused_columns or self.label_smoothing_factor:
            raise UserError("--remove_unused_columns true and --label_smoothing_factor are not for the cold "
                            "start: leave them out")
        if self.z_loss < 0 or not 0 <= self.dropout < 1 or self.sample_steps < 0:
            raise UserError(f"--z_loss {self.z_loss} and --sample_steps {self.sample_steps} must be 0 or "
                            f"more, --dropout {self.dropout} from 0 to below 1")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise UserError(f"--peak_tflops {self.peak_tflops} must be above 0")
        if self.train_sampling_strategy == "batch_rebalance":
            raise UserError("--train_sampling_strategy batch_rebalance: a resumed run would not find its "
                            "order again; use group_by_length, or random")
        # transformers refuses bf16 on CPU without it
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        super().__post_init__()
        _require_trackers(self)


@dataclass
class ChainGRPOConfig(RunSettings, GRPOConfig):
    """The settings of `realsr-r1 grpo`: every field of TRL's `GRPOConfig`, and these.

    The defaults are the published code's; `RolloutConfig` has those of rollouts.
    `per_device_train_batch_size` counts prompts, as in the published launch line (see
    `batch_unit`).
    """

    dataset_name: str = field(default="", metadata={
        "help": "Folder of a prepared dataset (realsr-r1 create-json)."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test_crops", metadata={
        "help": "Split that --eval_strategy measures."})
    max_samples: int | None = field(default=None, metadata={
        "help": "Train on this many records only, drawn with --seed."})
    chain_settings: str | None = field(default=None, metadata={"help": CHAIN_SETTINGS_HELP})
    reward_funcs: list[str] = field(
        default_factory=lambda: ["format", "degradation", "understanding", "generation"],
        metadata={"help": "Rewards by name (format, degradation, understanding, generation, fidelity, "
                          "progress), or package.module:function."})
    experts: list[str] | None = reward_field("experts")
    expert_weights: str | None = reward_field("expert_weights")
    expert_device: str | None = reward_field("expert_device")
    monitor_experts: list[str] | None = reward_field("monitor_experts")
    tag_precision: bool = reward_field("tag_precision")
    tag_synonyms: str | None = reward_field("tag_synonyms")
    neighbour_credit: float = reward_field("neighbour_credit")
    format_rule: str = reward_field("format_rule")
    tag_rule: str = reward_field("tag_rule")
    image_rule: str = reward_field("image_rule")

    num_generations: int = rollout_field("num_generations")
    max_prompt_length: int = field(default=5000, metadata={
        "help": "Longest prompt in tokens; a longer one is an error."})
    max_completion_length: int = rollout_field("max_new_tokens")
    per_device_train_batch_size: int = field(default=1, metadata={
        "help": "Prompts for each device and rollout (completions with --batch_unit completions)."})
    per_device_eval_batch_size: int = field(default=1, metadata={
        "help": "Prompts for each device and evaluation step (completions with --batch_unit completions)."})
    batch_unit: str = field(default="prompts", metadata={
        "help": "What per_device_train_batch_size counts: prompts (as the published code) or completions (as "
                "TRL).",
        "choices": ["prompts", "completions"]})
    loss_batch_size: int | None = field(default=None, metadata={
        "help": "With --batch_unit prompts: the most completions in one forward and backward of the loss "
                "(the largest number up to it that divides those of a device); by default a group."})

    rollout_temperature: float = rollout_field("temperature")
    guidance_scale: float = rollout_field("guidance_scale")
    text_top_k: int = rollout_field("text_top_k")
    image_top_k_min: int = rollout_field("image_top_k_min")
    image_top_k_max: int = rollout_field("image_top_k_max")
    grammar: str = rollout_field("grammar")
    max_text_tokens: int = rollout_field("max_text_tokens")
    jacobi: int = rollout_field("jacobi")
    cache_dtype: str = rollout_field("cache_dtype")
    cuda_graphs: bool = rollout_field("cuda_graphs")
    train_forced_tokens: bool = field(default=False, metadata={
        "help": "Let tokens that the grammar forced count in the loss, too (as the published code does)."})
    credit: str = field(default="sequence", metadata={
        "help": "Which tokens an advantage goes to. sequence: that of the sum of all rewards to all tokens "
                "(as published); section: each reward to the sections that it judges, compared on its own.",
        "choices": CREDITS})
    share_prompts: bool = field(default=True, metadata={
        "help": "The loss computes a prompt once for its completions in a microbatch, not once for each."})

    offload_during_rollout: bool = field(default=False, metadata={
        "help": "Keep the optimizer's states in the host's memory while rollouts are written, with ZeRO-3 or "
                "without DeepSpeed: a second or two more a step, and with ZeRO-3 in bfloat16 12 bytes less "
                "for each trained parameter of a device (its float32 weights go, too)."})
    sample_steps: int = field(default=50, metadata={
        "help": "Steps between saved samples of one group; 0 = none."})
    stop_if: list[str] = field(default_factory=list, metadata={
        "help": "Conditions that end the run, with a checkpoint, once one is met: 'NAME<NUMBER' or "
                "'NAME>NUMBER', with 'for N' for N logged steps in a row, such as 'format<0.5 for 20' "
                "(docs/algorithm.md lists the names)."})
    max_pixels: int | None = field(default=None, metadata={
        "help": "Accepted for the published launch line; this policy's image size is in its chain settings."})

    bf16: bool = field(default=False, metadata={
        "help": "Train in bfloat16 (mixed precision; DeepSpeed keeps float32 masters)."})
    temperature: float = field(default=1.0, metadata={
        "help": "Divides the logits in the loss (published code: 1)."})
    loss_type: str = field(default="grpo", metadata={
        "help": "TRL's loss; grpo: mean over sequences of token means."})
    scale_rewards: str = field(default="group", metadata={
        "help": "What advantages are divided by (published: group)."})
    learning_rate: float = field(default=2e-6, metadata={
        "help": "Learning rate of AdamW (published code: 2e-6)."})
    num_train_epochs: float = field(default=2.0, metadata={
        "help": "Passes over the prompts (published code: 2)."})
    beta: float = field(default=0.0, metadata={
        "help": "Weight of the KL term to the reference policy (published code: 0)."})

    def __post_init__(self) -> None:
        """Translate numbers of prompts into TRL's batch sizes, which count completions.

        Raises `UserError` for values that can't work.
        """
        _require_dataset(self.dataset_name)
        _require_finite(self)
        if self.num_generations < 2:
            raise UserError(f"--num_generations {self.num_generations}: a group needs at least 2 completions "
                            "to compare")
        _require_at_least_1(self, "per_device_train_batch_size", "per_device_eval_batch_size",
                            "gradient_accumulation_steps", "max_samples")
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise UserError(f"--reward_weights has {len(self.reward_weights)} values for "
                            f"{len(self.reward_funcs)} --reward_funcs")
        if not self.ds3_gather_for_generation:
            raise UserError("--ds3_gather_for_generation false: rollouts need whole parameters; leave it "
                            "true")
        if self.remove_unused_columns:
            raise UserError("--remove_unused_columns true would take the columns away that rewards read; "
                            "leave it out")
        if self.sample_steps < 0:
            raise UserError(f"--sample_steps {self.sample_steps} must be 0 or more")
        if isinstance(self.stop_if, str):  # a recipe's single line
            self.stop_if = [self.stop_if]
        if [Condition.parse(text) for text in self.stop_if] and self.logging_strategy == "no":
            raise UserError("--stop_if looks at what is logged: give it another --logging_strategy than no")
        self.rollout_config(self.num_generations)  # raises now what the first rollout would raise
        if self.batch_unit == "prompts":
            if self.steps_per_generation is not None:
                raise UserError("--steps_per_generation goes with --batch_unit completions; with prompts it "
                                "follows from --per_device_train_batch_size and --loss_batch_size")
            self.per_device_eval_batch_size *= self.num_generations_eval or self.num_generations
            completions = self.per_device_train_batch_size * self.num_generations
            most = self.num_generations if self.loss_batch_size is None else self.loss_batch_size
            if most < 1:
                raise UserError(f"--loss_batch_size {most} must be at least 1")
            micro = next(size for size in range(min(most, completions), 0, -1) if completions % size == 0)
            self.per_device_train_batch_size = micro
            self.steps_per_generation = completions // micro
            self.gradient_accumulation_steps *= completions // micro
            self.batch_unit = "completions"  # from here on the numbers have TRL's meaning
        elif self.loss_batch_size is not None:
            raise UserError("--loss_batch_size goes with --batch_unit prompts; with completions, "
                            "--per_device_train_batch_size is that number")
        # transformers refuses bf16 on CPU without it
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from error
        _require_trackers(self)
        if self.offload_during_rollout and self.deepspeed_plugin is not None:
            zero = self.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
            if zero.get("stage") != 3 or zero.get("offload_optimizer", {}).get("device", "none") != "none":
                raise UserError(f"--offload_during_rollout {STATES_LEAVE}")
        self._require_whole_groups()
        for name, known in CHOICES.items():  # TRL would say so after the first rollout
            if getattr(self, name) not in known:
                raise UserError(f"--{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")

    def rollout_config(self, num_generations: int) -> RolloutConfig:
        """Return the engine's settings for groups of `num_generations`.

        Raises `UserError` for values out of range.
        """
        return RolloutConfig(
            num_generations=num_generations, max_new_tokens=self.max_completion_length,
            temperature=self.rollout_temperature, guidance_scale=self.guidance_scale,
            text_top_k=self.text_top_k, image_top_k_min=self.image_top_k_min,
            image_top_k_max=self.image_top_k_max, grammar=self.grammar, max_text_tokens=self.max_text_tokens,
            jacobi=self.jacobi, cache_dtype=self.cache_dtype, cuda_graphs=self.cuda_graphs, seed=self.seed)

    def reward_settings(self, chain: ChainSettings, device: str,
                        tag_vocabulary: Sequence[str] = ()) -> RewardSettings:
        """Return what the rewards are made with.

        `chain`: the model folder's settings, which have the default experts. `device`: the run's.
        `tag_vocabulary`: the dataset's tags, for `tag_precision`. Raises `UserError` for values out
        of range, and for an `expert_device` that can't be used here.
        """
        return RewardSettings(
            chain=chain.chain, target_px=chain.target_px, device=device, tag_vocabulary=tag_vocabulary,
            experts=self.experts or chain.experts, expert_weights=self.expert_weights,
            expert_device=self.expert_device and pick_device(self.expert_device, "--expert_device"),
            monitor_experts=self.monitor_experts, tag_precision=self.tag_precision,
            tag_synonyms=self.tag_synonyms, neighbour_credit=self.neighbour_credit,
            format_rule=self.format_rule, tag_rule=self.tag_rule, image_rule=self.image_rule)

    def _require_whole_groups(self) -> None:
        """Raise `UserError` unless every group is made on one device."""
        made, group = self.per_device_train_batch_size * self.steps_per_generation, self.num_generations
        if made % group:
            raise UserError(f"a device makes {made} completions a rollout (--per_device_train_batch_size "
                            "times --steps_per_generation), which is not a multiple of --num_generations "
                            f"{group}")
        group = self.num_generations_eval or self.num_generations
        if self.eval_strategy != "no" and self.per_device_eval_batch_size % group:
            raise UserError(f"--per_device_eval_batch_size {self.per_device_eval_batch_size} is not a "
                            f"multiple of the {group} completions of a group")


def _require_dataset(folder: str) -> None:
    if not folder:
        raise UserError("--dataset_name must name the folder of a prepared dataset (realsr-r1 create-json "
                        "makes one)")


def _require_at_least_1(args: TrainingArguments, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and not 1 <= value <= MOST:
            raise UserError(f"--{name} {value} must be at least 1, and at most {MOST}")
    if args.seed < 0 or (args.data_seed or 0) < 0:
        raise UserError(f"--seed {args.seed} and --data_seed {args.data_seed} must be 0 or more")


def _require_finite(args: TrainingArguments) -> None:
    for name in (item.name for item in fields(args)):
        value = getattr(args, name)
        is_free = (name, value) == ("max_grad_norm", math.inf)
        if isinstance(value, float) and not math.isfinite(value) and not is_free:
            raise UserError(f"--{name} is {value}; it must be a finite number")
    if args.learning_rate < 0:
        raise UserError(f"--learning_rate {args.learning_rate} must be 0 or more")


def _require_trackers(args: TrainingArguments) -> None:
    unknown = sorted(set(args.report_to) - set(INTEGRATION_TO_CALLBACK))
    if unknown:
        raise UserError(f"--report_to {unknown[0]}: the known ones are none, all, "
                        f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
