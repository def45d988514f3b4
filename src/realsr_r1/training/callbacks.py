"""The log of a training run: one JSON line for each logged step, for `realsr-r1 report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file, parsed_json

LOG_FILE = "log_history.jsonl"


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


def _is_of(line: str, step: int) -> bool:
    """Whether a line of the log is a record of a step up to `step`."""
    try:
        record = parsed_json(line, LOG_FILE)
    except UserError:
        return False
    return (isinstance(record, dict) and isinstance(record.get("step", 0), int)
            and record.get("step", 0) <= step and "train_runtime" not in record)
