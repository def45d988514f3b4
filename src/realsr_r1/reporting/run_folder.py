"""Reads a training run's folder: its log, its settings, and its sample folders.

Knows files, no drawing and no HTML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import existing_folder
from realsr_r1.core.json_yaml import parsed_json, read_json
from realsr_r1.core.run_files import (
    DIFFERENCES_FILE,
    LOG_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    STOP_FILE,
    DifferencesFile,
    LogRecord,
    Settings,
    StateFile,
    StopFile,
)
from realsr_r1.core.schema import checked, is_number

SECONDS_KEY = "train_runtime"

# The most interesting settings, in the order of the page; the others are folded away.
HEADLINE_SETTINGS = (
    "model_name_or_path", "dataset_name", "grammar", "num_generations", "learning_rate", "max_steps",
    "num_train_epochs", "generation_batch_size", "reward_funcs",
    "reward_weights", "rollout_temperature", "guidance_scale", "text_top_k", "beta", "seed")


@dataclass(frozen=True)
class Series:
    """The values of one logged key by step."""

    steps: list[int]
    values: list[float]

    def moving_average(self) -> list[float]:
        """Return the mean of the last `window` values at every step (of fewer at the start)."""
        window = self.window
        return [sum(part) / len(part) for part in
                (self.values[max(0, index + 1 - window):index + 1] for index in range(len(self.values)))]

    @property
    def window(self) -> int:
        """A tenth of the run, between 5 and 50 values."""
        return min(50, max(5, len(self.values) // 10))

    @property
    def start_and_end(self) -> tuple[float, float]:
        """Return the means of the first and of the last `window` values.

        In a short run they are the means of its first and its last third.
        """
        count = max(1, min(self.window, len(self.values) // 3))
        return sum(self.values[:count]) / count, sum(self.values[-count:]) / count


@dataclass(frozen=True)
class Run:
    """A run's folder, its log records in order, its settings, and when its log was last written.

    `stopped`: why it ended before its time, or None. `differences`: what it does otherwise than the
    profile of its `--compare_with`, or None where it was compared with none.
    """

    folder: Path
    records: list[dict[str, Any]]
    settings: dict[str, Any]
    date: datetime
    stopped: str | None = None
    differences: DifferencesFile | None = None

    @property
    def name(self) -> str:
        """The run's own name where its settings have one, else the folder's name."""
        return str(self.settings.get("run_name") or self.folder.resolve().name)

    @property
    def steps(self) -> int:
        """The number of the last logged step."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def seconds(self) -> float | None:
        """How long training took, if the log says so.

        Where each step was logged with its time it is their sum, over all sessions of the run; else it
        is that of the last session.
        """
        times = {record["step"]: record["step_time"] for record in self.records if "step_time" in record}
        if len(times) == self.steps:
            return sum(times.values())
        return next((record[SECONDS_KEY] for record in reversed(self.records) if SECONDS_KEY in record), None)

    def series(self, key: str) -> Series | None:
        """Return the finite values logged as `key`, or None when there are none.

        A step that was logged twice counts once.
        """
        found = {record["step"]: float(record[key]) for record in self.records
                 if isinstance(record.get(key), (int, float)) and is_number(record[key])}
        return Series(list(found), list(found.values())) if found else None

    def rewards(self) -> list[str]:
        """The names of the rewards in the log, in the order they were logged."""
        keys = dict.fromkeys(key for record in self.records for key in record)
        return [match[1] for key in keys if (match := re.fullmatch(r"rewards/(.+)/mean", key))]


def read_run(folder: str | Path) -> Run:
    """Read a run. Raises `UserError` when there is no such folder or nothing was logged in it."""
    folder = existing_folder(folder, "--run")
    states = _state_files(folder)
    log = folder / LOG_FILE
    records, source = _read_log(log), log
    if not records and states:
        source = states[0]
        records = [checked(LogRecord, record, str(source))
                   for record in read_json(source, StateFile).get("log_history", []) if "step" in record]
    if not records:
        raise UserError(f"{folder} has no log of a training run (no {LOG_FILE}, no {STATE_FILE} with steps); "
                        "--run takes the output_dir of realsr-r1 grpo or sft, after its first logged step")
    stopped = read_json(folder / STOP_FILE, StopFile)["reason"] if (folder / STOP_FILE).is_file() else None
    compared = folder / DIFFERENCES_FILE
    return Run(folder, records, _read_settings(folder, states),
               datetime.fromtimestamp(source.stat().st_mtime), stopped,
               read_json(compared, DifferencesFile) if compared.is_file() else None)


def sample_folders(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every saved group, in the order of the steps."""
    found = [(int(match[1]), path) for path in (run / "samples").glob("step-*")
             if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()]
    return sorted(found)


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parsed_json(line, "it", LogRecord))
        except UserError as error:
            if number == len(lines):  # the run was stopped while it wrote this line
                break
            raise UserError(f"{path}, line {number}, is not a log record ({error}); "
                            "remove that line") from error
    return records


def _state_files(folder: Path) -> list[Path]:
    """Return the trainer_state.json files, the latest first.

    The folder's own comes first, then the checkpoints' from the last to the first.
    """
    checkpoints = [(int(match[1]), path) for path in folder.glob("checkpoint-*")
                   if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))]
    candidates = [folder, *(path for _, path in sorted(checkpoints, reverse=True))]
    return [path / STATE_FILE for path in candidates if (path / STATE_FILE).is_file()]


def _read_settings(folder: Path, states: list[Path]) -> dict[str, Any]:
    """Return the run's settings from its own file, or else those in the trainer's state."""
    if (folder / SETTINGS_FILE).is_file():
        return read_json(folder / SETTINGS_FILE, Settings)
    if not states:
        return {}
    state = read_json(states[0], StateFile)
    names = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "save_steps")
    return {name: state[name] for name in names if name in state}
