"""LoRA and QLoRA: turns TRL's flags into settings of peft and bitsandbytes.

The flags are `--use_peft`, `--lora_*` and `--load_in_4bit`. Knows the names of the policy's layers
and which flags go together; peft makes the adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError
from realsr_r1.models.protocol import LAYER_MATRICES
from realsr_r1.models.quantising import check_bitsandbytes

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, TrainingArguments
    from trl import ModelConfig


def adapter_config(model_args: ModelConfig) -> PeftConfig | None:
    """Return the LoRA settings of a run, or None for full training.

    Raises `UserError` for flags that don't go together.
    """
    from trl import get_peft_config

    if not model_args.use_peft:
        if model_args.load_in_4bit or model_args.load_in_8bit:
            raise UserError("--load_in_4bit and --load_in_8bit need --use_peft true: weights of so few bits "
                            "are not trained, adapters on them are")
        return None
    if model_args.lora_r < 1:
        raise UserError(f"--lora_r {model_args.lora_r} must be at least 1")
    config = get_peft_config(model_args)
    # By default every matrix of the layers has an adapter: arXiv 2305.14314 found that only this
    # is as good as full training.
    targets = model_args.lora_target_modules or list(LAYER_MATRICES)
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else targets  # ModelConfig makes a list of one a text
        unknown = [name for name in targets if name not in LAYER_MATRICES]
        if unknown:
            raise UserError(f"--lora_target_modules {unknown[0]}: the policy's layers have "
                            f"{', '.join(LAYER_MATRICES)} (or all-linear)")
        config.target_modules = set(targets)
    return config


def quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """Return how the base policy is quantised, or None. Raises `UserError` where it can't be."""
    from transformers.integrations import is_deepspeed_zero3_enabled
    from trl import get_quantization_config

    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    check_bitsandbytes()
    if is_deepspeed_zero3_enabled():
        raise UserError("--load_in_4bit and --load_in_8bit don't go with DeepSpeed ZeRO-3: every GPU holds "
                        "the whole quantised policy (4 GB for 7B in 4 bits); use ZeRO-2 "
                        "(local_scripts/zero2.json), or leave --deepspeed out")
    return get_quantization_config(model_args)


def with_adapter(policy: Any, config: PeftConfig, args: TrainingArguments) -> Any:
    """Return `policy` with new adapters for a plain `Trainer`, its own weights frozen.

    TRL's trainers do this themselves.
    """
    from peft import get_peft_model
    from transformers import set_seed
    from transformers.integrations import is_deepspeed_zero3_enabled

    set_seed(args.seed)  # adapters begin at random
    # ZeRO-3 gathers parameters together that must have the same type, so adapters on a bfloat16
    # policy can't be float32.
    policy = get_peft_model(policy, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    if args.gradient_checkpointing:
        # The embedding is frozen, so without this no input of a checkpointed layer needs gradients.
        policy.enable_input_require_grads()
    return policy
