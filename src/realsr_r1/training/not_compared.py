"""The settings that `--compare_with` leaves out, each with the reason: they change no step of a run.

A setting of the configurations or of the chain that isn't here is compared (comparison.py).
"""

from __future__ import annotations

from realsr_r1.training.without_effect import WITHOUT_EFFECT

NOT_COMPARED = {
    **dict.fromkeys(WITHOUT_EFFECT, "refused unless it is the default"),
    **dict.fromkeys(("max_pixels", "ds3_gather_for_generation", "remove_unused_columns", "label_names",
                     "use_cache"), "without effect on what is learned here"),
    **dict.fromkeys(("dataset_name", "dataset_train_split", "dataset_test_split", "model_name_or_path",
                     "chain"), "a run's own data, policy and question; the chain's sections are compared"),
    **dict.fromkeys(("chain_settings", "per_device_train_batch_size", "gradient_accumulation_steps",
                     "batch_unit", "loss_batch_size", "generation_batch_size", "steps_per_generation"),
                    "compared by what it comes to: chain settings, samples_a_step, steps_a_rollout"),
    **dict.fromkeys(("color_fix", "fidelity", "sampling"), "of restore"),
    **dict.fromkeys(("output_dir", "save_only_model", "save_strategy", "save_steps", "save_on_each_node",
                     "save_total_limit", "enable_jit_checkpoint", "sample_steps"), "saving"),
    **dict.fromkeys(("restore_callback_states_from_checkpoint", "trust_checkpoint", "rank_timeout",
                     "grace_seconds"), "how a run is watched, ended and resumed"),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
                     "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level",
                     "log_level_replica", "disable_tqdm", "report_to", "run_name", "project",
                     "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug",
                     "skip_memory_metrics", "peak_tflops", "compare_with", "log_completions",
                     "log_multimodal", "num_completions_to_print", "log_unique_prompts",
                     "log_completions_hub_repo"), "logging"),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
                     "hub_always_push", "hub_revision"), "the Hub"),
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size",
                     "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
                     "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
                     "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "num_generations_eval",
                     "monitor_experts", "metric_for_best_model", "greater_is_better"),
                    "evaluation; load_best_model_at_end is compared"),
    **dict.fromkeys(("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
                     "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
                     "torch_compile_mode", "use_liger_kernel", "liger_kernel_config",
                     "torch_empty_cache_steps", "auto_find_batch_size", "pad_to_multiple_of",
                     "attn_implementation", "jacobi", "cuda_graphs", "share_prompts",
                     "offload_during_rollout"),
                    "memory and speed; Jacobi decoding draws from the same distribution"),
    **dict.fromkeys(("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
                     "dataloader_persistent_workers", "dataloader_prefetch_factor",
                     "dataloader_multiprocessing_context", "dataloader_in_order", "length_column_name"),
                    "the data loader"),
    **dict.fromkeys(("use_cpu", "accelerator_config", "parallelism_config", "ddp_find_unused_parameters",
                     "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
                     "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "local_rank", "expert_weights",
                     "expert_device"), "the devices that the work is on, and the places of experts' weights"),
}
