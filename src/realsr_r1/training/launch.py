"""Start and end of a training process: process group, lock, exit code, and the model folder.

Both are the same for the cold start and GRPO.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.files import atomic_file, open_to_others
from realsr_r1.core.parents import join_launcher
from realsr_r1.training.checkpoints import complete_checkpoints
from realsr_r1.training.manifest import MARKER
from realsr_r1.training.run_lock import sole_writer
from realsr_r1.training.signals import exit_code

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.training.steady import SteadyTrainer


def prepare_process(args: TrainingArguments) -> None:
    """Join the process group, and let wandb write into the run's folder.

    Where nobody is logged in, wandb works offline. On a CPU with DeepSpeed, the group must exist
    before a model is built.
    """
    import logging
    import os
    import warnings

    import datasets
    import torch

    join_launcher()  # also where a script of the user's own calls this
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


@contextlib.contextmanager
def only_run_in(output_dir: str | Path, args: TrainingArguments) -> Iterator[None]:
    """Hold the lock of a run's folder: rank 0 for all.

    Raises `UserError` on all ranks where another run has it.
    """
    from realsr_r1.training.agreement import Agreement

    agreement = Agreement()
    with contextlib.ExitStack() as held:
        with agreement:
            if args.process_index == 0:
                held.enter_context(sole_writer(output_dir))
        agreement.settle()
        yield


def train_and_save(trainer: SteadyTrainer, processor: ChainProcessor, output_dir: str | Path,
                   checkpoint: Path | None) -> int:
    """Train, from `checkpoint` on where there is one, and write the model folder.

    Returns the process's exit code: 0, or that of a signal that ended it. One line says then what is
    saved.
    """
    with trainer.signals.noted():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.stopped_by:
            said = f"at step {trainer.state.global_step} of {trainer.state.max_steps}; {_saved(output_dir)}"
        else:
            save_model_folder(trainer, processor, output_dir)
            said = "while it wrote its model folder, which is complete"
    told = trainer.stopped_by or trainer.signals.received
    if told and trainer.is_world_process_zero():
        print(f"{output_dir}: the run was ended by {signal.Signals(told).name} {said}", flush=True)
    return exit_code(told) if told else 0


def _saved(output_dir: str | Path) -> str:
    complete = complete_checkpoints(Path(output_dir))
    if not complete:
        return "no checkpoint is saved"
    return f"saved as {complete[max(complete)].name}: the same command goes on from there"


def save_model_folder(trainer: SteadyTrainer, processor: ChainProcessor, output_dir: str | Path) -> None:
    """Write a complete model folder into `output_dir`.

    Rank 0 writes, and all ranks take part in gathering the weights. A marker is written last;
    without it the run doesn't count as finished (`is_finished`). Raises `UserError` on all ranks
    where the weights aren't finite.
    """
    trainer.require_finite_weights()
    if trainer.is_world_process_zero():
        processor.save_pretrained(output_dir)
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        open_to_others(Path(output_dir))
        with atomic_file(Path(output_dir) / MARKER) as partial:
            partial.write_text("the run has ended, and its model folder is written\n", encoding="utf-8")


def is_finished(output_dir: str | Path) -> bool:
    """Whether the run in `output_dir` has ended and its model folder is completely written."""
    return (Path(output_dir) / MARKER).is_file()
