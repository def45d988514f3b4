"""Settings of both training stages that are about the run itself: when it ends, what it goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field

from realsr_r1.core.errors import UserError


@dataclass
class RunSettings:
    """Comes before transformers' settings among a class's bases."""

    compare_with: str | None = field(default=None, metadata={
        "help": "Name of a profile, such as published: say what this run does otherwise than its recipe "
                "(NAME_sft.yaml or NAME_grpo.yaml of configs/recipes) with its chain settings, and keep that "
                "table in the run's folder, for its report. realsr-r1 plan says it without a run."})
    rank_timeout: float = field(default=1800.0, metadata={
        "help": "Seconds that a process may stay in one phase (rollout, reward, loss, saving, evaluation) "
                "before the run is ended with a line that names both; 0 = no limit."})
    grace_seconds: float | None = field(default=None, metadata={
        "help": "Seconds from SIGTERM, SIGINT or SIGUSR1 to the end that a scheduler allows. Where a step "
                "would take longer, the run is saved as it was at the last step's end; by default it always "
                "ends the step."})
    trust_checkpoint: bool = field(default=False, metadata={
        "help": "Go on from a checkpoint although its files are not those that its completion marker lists, "
                "or could run code when they are loaded."})
    reset_optimizer: bool = field(default=False, metadata={
        "help": "Go on from a checkpoint's weights and step with a new optimizer: with another --optim, "
                "number of processes, or --deepspeed than it was made with."})

    def __post_init__(self) -> None:
        """Raise `UserError` for values that can't work."""
        if self.rank_timeout < 0:
            raise UserError(f"--rank_timeout {self.rank_timeout} must be 0 or more")
        if self.grace_seconds is not None and self.grace_seconds < 0:
            raise UserError(f"--grace_seconds {self.grace_seconds} must be 0 or more")
        super().__post_init__()
        if self.deepspeed_plugin is not None and self.gradient_accumulation_steps > 1:
            settings = self.deepspeed_plugin.deepspeed_config
            # By itself DeepSpeed adds the gradients of microbatches up in the weights' bfloat16. Without
            # ZeRO it can't do otherwise, and in stage 1 it would take another optimizer.
            if settings.get("zero_optimization", {}).get("stage") in (2, 3):
                settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
