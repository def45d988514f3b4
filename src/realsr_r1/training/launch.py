"""Start and end of a training process: the process group, and the model folder.

Both are the same for the cold start and GRPO.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.training.checkpoints import MARKER, mark_complete

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from realsr_r1.chain.processor import ChainProcessor


def prepare_process(args: TrainingArguments) -> None:
    """Join the process group, and let wandb write into the run's folder.

    Where nobody is logged in wandb works offline. On a CPU with DeepSpeed, the group must exist before a model is built.
    """
    import logging
    import os
    import warnings

    import datasets
    import torch

    # DeepSpeed calls collectives by their old names, and torch warns about that at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # TRL asks transformers for gradient checkpointing by its old name, at every rollout.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing")
    # Our rollouts use this argument, and requirements.txt pins the TRL that they were tested with.
    warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
    # peft reads the base folder's config whenever it saves adapters, and transformers warns when a
    # published one names another model type.
    logging.getLogger("transformers.configuration_utils").addFilter(
        lambda record: "instantiate a model of type" not in record.getMessage())
    # At every start accelerate says that it takes the number of accumulation steps from DeepSpeed.
    logging.getLogger("accelerate.accelerator").addFilter(
        lambda record: "Gradient accumulation steps mismatch" not in record.getMessage())
    if args.process_index:  # rank 0 says it for all
        datasets.disable_progress_bars()
        warnings.filterwarnings("ignore", message="flash_attention_2 needs")

    if args.deepspeed and "RANK" in os.environ and not torch.cuda.is_available():
        import deepspeed.ops

        # DeepSpeed would compile this op for minutes. It is for inference, and training doesn't use
        # it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo")
    args.device  # noqa: B018  (transformers sets the device and the group up on first use)
    os.environ.setdefault("WANDB_DIR", args.output_dir)
    if "wandb" in args.report_to and "WANDB_MODE" not in os.environ and args.process_index == 0:
        import wandb

        if not wandb.login(prompt=False):
            wandb.setup(wandb.Settings(mode="offline"))  # login has read the variable already


def save_model_folder(trainer: Trainer, processor: ChainProcessor, output_dir: str | Path) -> None:
    """Write a complete model folder into `output_dir`.

    Rank 0 writes, and all ranks take part in gathering the weights. A marker is written last;
    without it the run doesn't count as finished (`is_finished`).
    """
    if trainer.is_world_process_zero():
        processor.save_pretrained(output_dir)
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        mark_complete(Path(output_dir))


def is_finished(output_dir: str | Path) -> bool:
    """Whether the run in `output_dir` has ended and its model folder is completely written."""
    return (Path(output_dir) / MARKER).is_file()
