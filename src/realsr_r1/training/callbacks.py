"""The log of a training run: one JSON line for each logged step, for `realsr-r1 report`, and one short
line for the person who watches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.run_files import LOG_FILE, LogRecord


class JsonLog(TrainerCallback):
    """Appends every log to `output_dir/log_history.jsonl`.

    When a run resumes, the steps after its checkpoint are dropped first, the summary of the training
    that ended there, and lines that can't be read.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        path = Path(args.output_dir) / LOG_FILE
        if state.is_world_process_zero and path.is_file():
            lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _is_of(line, state.global_step)]
            with atomic_file(path) as partial:
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(args.output_dir) / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}, default=float) + "\n")


# What a person reads of a log: name in the log -> name in the line. Everything is in the log file.
SHOWN = {"loss": "loss", "reward": "reward", "kl": "KL", "grad_norm": "gradient", "learning_rate": "rate",
         "entropy": "entropy", "completions/mean_length": "tokens", "tokens_per_second": "tokens/s",
         "mfu": "MFU", "step_time": "seconds"}


def log_line(logs: dict[str, Any]) -> str:
    """Return one line of a log: loss, reward and its parts, and how it goes; empty where it has none."""
    if "train_runtime" in logs:
        return f"trained in {logs['train_runtime']:.0f} s, mean loss {logs.get('train_loss', 0.0):.4g}"
    prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    values = {name.removeprefix(prefix): value for name, value in logs.items()
              if isinstance(value, int | float) and name.startswith(prefix)}
    parts = [f"{SHOWN[name]} {values[name]:.4g}" for name in SHOWN if name in values]
    of_reward = [f"{name.split('/')[1].removesuffix('_reward')} {value:.3f}" for name, value in values.items()
                 if name.startswith("rewards/") and name.endswith("/mean")]
    held_out = [f"{name} {value:.3f}" for name, value in values.items() if name.startswith("monitor/")]
    if of_reward or held_out:
        place = 1 + max((place for place, part in enumerate(parts) if part.startswith("reward ")), default=-1)
        parts.insert(place, f"({', '.join(of_reward + held_out)})")
    return " ".join(["evaluation:"] * bool(prefix) + ["  ".join(parts)]) if parts else ""


class Bar(ProgressCallback):
    """transformers' progress bar, which leaves logs to `OneLineLogs`."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class OneLineLogs(TrainerCallback):
    """Shows each log as one line, and where a resumed run goes on.

    It takes the place of transformers' callbacks, which print everything as a dictionary.
    """

    def __init__(self, bar: Bar | None = None):
        self.bar = bar

    @staticmethod
    def take_over(trainer: Trainer) -> None:
        """Put it in the place of a trainer's own callbacks for showing logs."""
        trainer.remove_callback(PrinterCallback)
        bar = None if trainer.pop_callback(ProgressCallback) is None else Bar()
        if bar is not None:
            trainer.add_callback(bar)
        trainer.add_callback(OneLineLogs(bar))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        if state.global_step > state.max_steps:
            self._write(state, f"checkpoint-{state.global_step} has more steps than the {state.max_steps} "
                               "that are asked: nothing is trained, and the model folder is made of it")
        elif state.global_step:
            self._write(state, f"going on from checkpoint-{state.global_step} (step {state.global_step} of "
                               f"{state.max_steps})")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = log_line(logs or {})
        if line:
            self._write(state, f"step {state.global_step} of {state.max_steps}: {line}")

    def _write(self, state: TrainerState, line: str) -> None:
        if not state.is_world_process_zero:
            return
        if self.bar is not None and self.bar.training_bar is not None:
            self.bar.training_bar.write(line)
        else:
            print(line, flush=True)


def _is_of(line: str, step: int) -> bool:
    """Whether a line of the log is a record of a step up to `step`."""
    try:
        record = parsed_json(line, LOG_FILE, LogRecord)
    except UserError:
        return False
    return record["step"] <= step and "train_runtime" not in record
