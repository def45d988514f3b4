"""Ends a run by its `--stop_if`, and says so: now, in the run's folder, and when it is started again.

A run that was ended so is a finished run: its folder is whole and its exit code is 0. What ended
it is in `stopped.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.run_files import STOP_FILE, StopFile
from realsr_r1.training.checkpoints import best_checkpoint
from realsr_r1.training.grpo.guards import Condition, first_met, never_logged, unknown_name
from realsr_r1.training.launch import is_finished
from realsr_r1.training.manifest import MARKER


class StopGuard(TrainerCallback):
    """Ends training, with a checkpoint, at the first log by which a condition is met.

    Rank 0 decides for all, for a number may differ between ranks (`step_time`). Raises `UserError`
    on all ranks when a condition's number is missing where it should be logged first.
    """

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self.conditions = conditions
        self.met: tuple[Condition, list[float]] | None = None
        self.met_at: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        # A run that died between its last checkpoint and its model folder takes no more steps.
        self.met = first_met(self.conditions, state.log_history)
        if self.met is not None:
            self.met_at, control.should_training_stop = state.global_step, True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               **kwargs: Any) -> None:
        if self.met is not None or "train_runtime" in state.log_history[-1]:  # the summary at a run's end
            return
        missing = never_logged(self.conditions, state.log_history)
        missing, self.met = broadcast_object_list([missing, first_met(self.conditions, state.log_history)])
        if missing is not None:
            raise UserError(unknown_name(missing, {key for record in state.log_history for key in record}))
        if self.met is not None:
            self.met_at = state.global_step
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                     **kwargs: Any) -> None:
        # With --save_strategy best, an evaluation at that step may have taken the save back.
        if self.met_at == state.global_step and not self._checkpoint(args, state).is_dir():
            control.should_save = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                     **kwargs: Any) -> None:
        if self.met is None or not state.is_world_process_zero:
            return
        condition, values = self.met
        output = Path(args.output_dir)
        best = best_checkpoint(output, state.log_history)
        shown = ", ".join(f"{value:.4g}" for value in values[-3:])
        reason = (f"stopped at step {state.global_step} by --stop_if {str(condition)!r} "
                  f"({condition.name} was {'..., ' if len(values) > 3 else ''}{shown})")
        named = f"; best checkpoint so far: {best.folder} ({best.why})" if best else ""
        write_json(output / STOP_FILE, {
            "step": state.global_step, "condition": str(condition), "values": values, "reason": reason,
            "best_checkpoint": best and best.folder.name, "best_by": best and best.why})
        print(f"{output}: {reason}; saved as {self._checkpoint(args, state)}{named}", flush=True)

    @staticmethod
    def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def what_ended(output: Path, conditions: Sequence[Condition]) -> str | None:
    """Say why the run in `output` has ended, and how to go on; None where it has not, or goes on.

    A run that a condition stopped goes on when `conditions` no longer have that one.
    """
    if not is_finished(output):
        return None
    if not (output / STOP_FILE).is_file():
        return (f"{output} holds a finished run already; nothing to do (a larger --max_steps or "
                "--num_train_epochs goes on)")
    stopped = read_json(output / STOP_FILE, StopFile)
    if Condition.parse(stopped["condition"]) not in conditions:
        return None
    best = output / (stopped["best_checkpoint"] or "")
    return (f"{output} holds a run that was {stopped['reason']}; nothing to do. To go on in this folder, "
            f"give another --stop_if, or none. To start anew from its best checkpoint, make that a model "
            f"folder (realsr-r1 export --checkpoint {best} --output MODEL), and give --model_name_or_path "
            "MODEL and another --output_dir")


def go_on(output: Path) -> None:
    """Let a run that was stopped count as unfinished again, with one line; others are left alone."""
    if (output / STOP_FILE).is_file():
        step = read_json(output / STOP_FILE, StopFile)["step"]
        (output / MARKER).unlink(missing_ok=True)
        (output / STOP_FILE).unlink()
        print(f"{output} was stopped at step {step}; it goes on with this command's --stop_if", flush=True)
