"""The log of a training run: one JSON line for each logged step, for `realsr-r1 report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.core.files import atomic_file, parsed_json
from realsr_r1.core.run_files import LOG_FILE, LogRecord


class JsonLog(TrainerCallback):
    """Appends every log to `output_dir/log_history.jsonl`.

    When a run resumes, the steps after its checkpoint are dropped first.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        path = Path(args.output_dir) / LOG_FILE
        if state.is_world_process_zero and path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines
                    if parsed_json(line, str(path), LogRecord)["step"] <= state.global_step]
            with atomic_file(path) as partial:
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(args.output_dir) / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}, default=float) + "\n")
