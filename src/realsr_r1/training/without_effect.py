"""Flags of TRL and transformers that would do nothing here: each is refused, with what does it.

Rollouts are this project's own, models come from folders, and a run resumes from its own folder, so
whatever TRL has for these would be accepted and ignored.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from realsr_r1.core.errors import UserError

SAMPLING = ("rollouts draw by --rollout_temperature, --text_top_k, --image_top_k_min, --image_top_k_max and "
            "--guidance_scale")
ENGINE = ("rollouts are written by this project's own engine, which knows the chain and its images; leave it "
          "out")
VLLM = "vLLM writes no chains with images; leave it out"
MODEL_FOLDER = "models are read from a folder: name another one with --model_name_or_path"
CONTINUES = "started again with the same --output_dir, a run goes on from its newest whole checkpoint"
STAGES = "realsr-r1 sft and grpo always train; --eval_strategy says when to evaluate"
NO_TOOLS = "a chain calls no tools; leave it out"

# Name of a setting -> what to use in its place. It is refused when its value isn't the default.
WITHOUT_EFFECT = {
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"), SAMPLING),
    **dict.fromkeys(("cache_implementation", "use_transformers_continuous_batching",
                     "transformers_continuous_batching_config", "use_transformers_paged"), ENGINE),
    **dict.fromkeys(("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode",
                     "vllm_structured_outputs_regex", "vllm_server_base_url", "vllm_server_host",
                     "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
                     "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
                     "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
                     "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
                     "vllm_importance_sampling_cap"), VLLM),
    "chat_template_kwargs": "prompts have no chat template: --chain_settings says what is asked",
    "model_init_kwargs": "use --dtype, --attn_implementation, --load_in_4bit and --use_peft",
    "trust_remote_code": "no code of a model folder is ever run; leave it out",
    "model_revision": MODEL_FOLDER,
    "router_aux_loss_coef": "the policies have no experts to route to; leave it out",
    "max_tool_calling_iterations": NO_TOOLS,
    "resume_from_checkpoint": CONTINUES,
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), STAGES),
}
# Settings of adapters and of 4 bits, and the flag without which they do nothing.
OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
               "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora")
OF_4_BITS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def refuse_without_effect(*settings: Any) -> None:
    """Raise `UserError` that names the first setting whose value would change nothing.

    `settings`: the dataclasses of a run.
    """
    values = {item.name: getattr(one, item.name) for one in settings for item in fields(one)}
    changed = [item.name for one in settings for item in fields(one)
               if values[item.name] != (item.default if item.default_factory is MISSING
                                        else item.default_factory())]
    for name in changed:
        # transformers sets --do_eval itself where there is something to evaluate.
        if name in WITHOUT_EFFECT and (name != "do_eval" or values["eval_strategy"] == "no"):
            raise UserError(f"--{name} {values[name]} has no effect here: {WITHOUT_EFFECT[name]}")
        if name in OF_ADAPTERS and not values["use_peft"]:
            raise UserError(f"--{name} {values[name]} has no effect without --use_peft true")
        if name in OF_4_BITS and not values["load_in_4bit"]:
            raise UserError(f"--{name} {values[name]} has no effect without --load_in_4bit true")
