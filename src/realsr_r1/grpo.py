"""VLCoT-GRPO: fine-tunes a cold-started policy with reinforcement learning.

`torchrun ... grpo.py --config FILE.yaml`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import check_new_folder, write_json
from realsr_r1.core.import_named import load_module
from realsr_r1.core.settings import check_folders, parse

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig

    from realsr_r1.training.config import ChainGRPOConfig
    from realsr_r1.training.grpo.trainer import ChainGRPOTrainer

PROMPTS_FOLDER = "prompts"
# These settings must be the same when a run resumes.
LASTING = ("chain_settings", "num_generations", "generation_batch_size", "seed", "optim", "use_peft",
           "lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit", "credit")


def main(argv: list[str] | None = None, trainer_class: type[ChainGRPOTrainer] | None = None) -> int | None:
    """Go from arguments to the saved model; returns the exit code of a run that a signal ended.

    `trainer_class`: a class of your own, for example with a loss of its own (docs/extending.md).
    """
    check_folders(argv)
    load_module("realsr_r1.training.config")
    from trl import ModelConfig

    from realsr_r1.core.devices import triton_compiler
    from realsr_r1.training.adapters import adapter_config, quantization_config
    from realsr_r1.training.config import ChainGRPOConfig
    from realsr_r1.training.launch import is_finished, only_run_in, prepare_process
    from realsr_r1.training.without_effect import refuse_without_effect

    args, model_args = parse((ChainGRPOConfig, ModelConfig), argv, "realsr-r1 grpo")
    refuse_without_effect(args, model_args)
    if args.max_pixels is not None and args.process_index == 0:
        print(f"--max_pixels {args.max_pixels} has no effect: the image size is in the model folder's chain "
              "settings")
    adapters, quantization = adapter_config(model_args), quantization_config(model_args)
    prepare_process(args)
    from realsr_r1.training.grpo.guards import Condition
    from realsr_r1.training.grpo.stopping import what_ended
    from realsr_r1.training.grpo.trl_hooks import check_hooks
    from realsr_r1.training.resuming import is_more_asked

    check_hooks()  # before the first of them is used
    if args.device.type == "cuda":
        triton_compiler()
    if not model_args.model_name_or_path:
        raise UserError("--model_name_or_path must name a model folder (assets/tiny, or one from realsr-r1 "
                        "sft or export)")
    output = Path(args.output_dir)
    more = is_finished(output) and is_more_asked(output, args)
    ended = None if more else what_ended(output, [Condition.parse(text) for text in args.stop_if])
    if ended:
        if args.process_index == 0:
            print(ended)
        return None
    check_new_folder(output, "--output_dir")
    with only_run_in(output, args):
        return train_run(args, model_args, adapters, quantization, trainer_class)


def train_run(args: ChainGRPOConfig, model_args: ModelConfig, adapters: PeftConfig | None, quantization: Any,
              trainer_class: type[ChainGRPOTrainer] | None) -> int:
    """Go from settings to the saved model; the steps follow one another below. Returns the exit code."""
    load_module("realsr_r1.training.grpo.trainer")
    from trl.trainer.utils import global_then_local_main_first

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.chain.settings import SETTINGS_FILE as CHAIN_SETTINGS
    from realsr_r1.chain.settings import question_in
    from realsr_r1.models import load_policy
    from realsr_r1.models.loading import policy_config, tensor_shapes
    from realsr_r1.rewards import load_reward_funcs
    from realsr_r1.rewards.registry import judged_sections, load_monitors, required_columns
    from realsr_r1.training.agreement import Agreement
    from realsr_r1.training.checkpoints import SETTINGS_FILE, require_same_run
    from realsr_r1.training.comparison import compared, keep
    from realsr_r1.training.grpo.guards import Condition, require_logged
    from realsr_r1.training.grpo.logged import logged_names
    from realsr_r1.training.grpo.prompts import (
        dataset_tags,
        load_prompts,
        other_question,
        require_levels,
    )
    from realsr_r1.training.grpo.scores import try_own_rewards
    from realsr_r1.training.grpo.stopping import go_on
    from realsr_r1.training.grpo.trainer import ChainGRPOTrainer
    from realsr_r1.training.launch import is_finished, train_and_save
    from realsr_r1.training.resetting import weights_of
    from realsr_r1.training.resuming import (
        checkpoint_to_go_on_from,
        is_more_asked,
        reopen,
        require_checkpoint,
        require_same_setting,
    )

    output, conditions = Path(args.output_dir), [Condition.parse(text) for text in args.stop_if]
    going_on = require_checkpoint(output) if is_finished(output) and is_more_asked(output, args) else None
    if going_on and args.process_index == 0:
        print(going_on)
    checkpoint = checkpoint_to_go_on_from(output, args)
    lasting = [name for name in LASTING if name != "optim" or not args.reset_optimizer]
    settings = shown_settings(args, model_args)
    if checkpoint:
        require_same_setting(checkpoint, args, model_args.use_peft)
        require_same_run(output, settings, lasting)
    # This line and the next report a bad folder before anything is made.
    policy_config(Path(model_args.model_name_or_path))
    tensor_shapes(Path(model_args.model_name_or_path))
    processor = ChainProcessor.from_pretrained(model_args.model_name_or_path, str(args.device),
                                               args.chain_settings)
    if trainer_class is None and not any(":" in name for name in args.reward_funcs):
        # What functions of one's own log is known after the first step.
        require_logged(conditions, logged_names(args, args.reward_funcs, processor.chain.names()))
    differing = compared(args, model_args, processor.settings, "grpo")
    agreement = Agreement()  # otherwise the other ranks would wait for a rank with a fault
    # One process goes first, since it may have to download the experts' weights.
    with global_then_local_main_first(), agreement:
        rewards = args.reward_settings(processor.settings, str(args.device),
                                       dataset_tags(args.dataset_name) if args.tag_precision else ())
        reward_funcs = load_reward_funcs(args.reward_funcs, rewards)
        monitors = load_monitors(args.reward_funcs, rewards)
    agreement.settle()
    if monitors and args.eval_strategy == "no":
        raise UserError("--monitor_experts are scored at evaluations, and there are none: give "
                        "--eval_strategy steps and --eval_steps N, or leave them out")
    columns = required_columns(args.reward_funcs, rewards)

    def prompts(split: str, max_samples: int | None) -> Any:
        return load_prompts(args.dataset_name, split, processor, columns, output / PROMPTS_FOLDER / split,
                            args.max_prompt_length, max_samples, args.seed, args.process_index,
                            args.world_size,
                            question_in(args.chain_settings))

    train = prompts(args.dataset_train_split, args.max_samples)
    evaluation = prompts(args.dataset_test_split, None) if args.eval_strategy != "no" else None
    wanted = args.generation_batch_size // args.num_generations
    if len(train) < wanted:
        raise UserError(f"{args.dataset_name}: {args.dataset_train_split} has {len(train)} prompts, fewer "
                        f"than the {wanted} of one rollout over all devices; use more prompts or a smaller "
                        "--per_device_train_batch_size")
    try_own_rewards(args.reward_funcs, reward_funcs, processor.chain, train[0])
    if args.chain_settings is None:
        require_levels(train, processor, args.dataset_name, model_args.model_name_or_path)
    other = other_question(train, processor)
    if other is not None:  # the model folder keeps the question that its policy is trained with
        if args.process_index == 0:
            print(f"{args.dataset_name} asks {other!r}, and {model_args.model_name_or_path} was taught "
                  f"{processor.chain.question!r}. This run asks the former, and its model folder keeps it; "
                  f"for the latter give --chain_settings {model_args.model_name_or_path}/{CHAIN_SETTINGS}")
        processor = processor.with_settings(processor.settings.asking(other))
    # The policy is in float32 unless --dtype says otherwise; DeepSpeed and autocast cast it.
    with weights_of(checkpoint if args.reset_optimizer else None, model_args.model_name_or_path,
                    args.process_index == 0) as folder:
        policy = load_policy(folder, dtype=model_args.dtype, quantization_config=quantization,
                             attn_implementation=model_args.attn_implementation)
    # where the reference policy comes from
    policy.name_or_path = policy.config.name_or_path = model_args.model_name_or_path
    trainer = (trainer_class or ChainGRPOTrainer)(policy, processor, reward_funcs, args, train, evaluation,
                               reward_log=reward_log_path(), peft_config=adapters,
                               judged=judged_sections(args.reward_funcs, processor.chain),
                               monitors=monitors)
    if args.process_index == 0:
        go_on(output)
        reopen(output)
        write_json(output / SETTINGS_FILE, settings)
        keep(differing, output)
    return train_and_save(trainer, processor, output, checkpoint)


def shown_settings(args: ChainGRPOConfig, model_args: ModelConfig) -> dict[str, Any]:
    """Return the settings that the report shows: our own and the optimizer's, as plain values."""
    names = ["run_name", "dataset_name", "chain_settings", "reward_funcs", "reward_weights", "experts",
             "expert_weights", "expert_device", "monitor_experts", "tag_precision", "tag_synonyms",
             "neighbour_credit", "format_rule", "tag_rule", "image_rule",
             "num_generations", "generation_batch_size", "learning_rate", "max_steps", "num_train_epochs",
             "rollout_temperature", "guidance_scale", "text_top_k", "image_top_k_max", "grammar",
             "train_forced_tokens", "credit", "stop_if", "loss_type", "beta", "bf16", "seed", "world_size"]
    adapters = ["lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"] if model_args.use_peft else []
    return {"model_name_or_path": model_args.model_name_or_path,
            **{name: getattr(args, name) for name in names},
            "optim": args.optim.value, "use_peft": model_args.use_peft,
            **{name: getattr(model_args, name) for name in adapters}}


def reward_log_path() -> str | None:
    """Return the path of the text log of rewards, or None.

    The published code asks for this log by `DEBUG_MODE=true LOG_PATH=FILE`.
    """
    if os.environ.get("DEBUG_MODE", "").lower() not in ("true", "1"):
        return None
    return os.environ.get("LOG_PATH") or "reward_log.txt"


if __name__ == "__main__":
    run(main)
