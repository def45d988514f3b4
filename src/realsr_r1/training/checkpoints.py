"""Which checkpoints are complete, which is the best, and what a resumed run must have in common
with its start.

A complete checkpoint has a completion marker, which is written last, after a barrier.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file, read_json
from realsr_r1.core.run_files import SETTINGS_FILE, Settings

MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")
REWARDS_OF_A_CHECKPOINT = 10  # logged steps whose mean reward says how good a checkpoint is


class CompletionMarker(TrainerCallback):
    """Marks a checkpoint once every rank has written its part.

    Only then does it delete old checkpoints, as `--save_total_limit` asks. `keep_best`: whether the
    best one by its reward (`best_checkpoint`) stays beside them.
    """

    def __init__(self, keep_best: bool = False) -> None:
        self.limit: int | None = None
        self.keep_best = keep_best

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       **kwargs: Any) -> None:
        # transformers would delete the old checkpoints before the new one has its marker, and a run
        # that is killed then would have none.
        self.limit, args.save_total_limit = args.save_total_limit or self.limit, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                **kwargs: Any) -> None:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            output, kept = Path(args.output_dir), {Path(state.best_model_checkpoint or "").name}
            if self.keep_best and (best := best_checkpoint(output, state.log_history)):
                kept.add(best.folder.name)
            self._delete_old(output, kept)

    def _delete_old(self, folder: Path, kept: set[str]) -> None:
        complete = complete_checkpoints(folder)
        for step in sorted(complete)[:-self.limit] if self.limit else ():
            if complete[step].name not in kept:
                (complete[step] / MARKER).unlink()  # first, so that a half-deleted checkpoint doesn't count
                shutil.rmtree(complete[step], ignore_errors=True)


def mark_complete(folder: Path) -> None:
    """Write the completion marker into `folder`."""
    with atomic_file(folder / MARKER) as partial:
        partial.write_text("everything that belongs into this folder is written\n", encoding="utf-8")


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step -> folder of every checkpoint in `folder` that has its completion marker."""
    return {step: path for step, path in _checkpoints(folder).items() if (path / MARKER).is_file()}


@dataclass(frozen=True)
class BestCheckpoint:
    """The folder of the best checkpoint of a run, and in words by what it is the best."""

    folder: Path
    why: str


def best_checkpoint(folder: Path, records: Sequence[Mapping[str, Any]]) -> BestCheckpoint | None:
    """Return the complete checkpoint in `folder` with the best total reward; None without a reward.

    `records`: the run's log. It is the reward that an evaluation at a checkpoint's step measured,
    where there is one of any checkpoint. Otherwise it is the mean of training's last 10 logged
    steps up to the checkpoint. The later one of two equals is taken.
    """
    complete = complete_checkpoints(folder)
    evaluated = {record["step"]: record["eval_reward"] for record in records
                 if record.get("eval_reward") is not None and record["step"] in complete}
    if evaluated:
        step = max(evaluated, key=lambda step: (evaluated[step], step))
        return BestCheckpoint(complete[step], f"total reward {evaluated[step]:.4g} in its evaluation")
    trained = [(record["step"], record["reward"]) for record in records if record.get("reward") is not None]
    means = {}
    for step in complete:
        rewards = [reward for at, reward in trained if at <= step][-REWARDS_OF_A_CHECKPOINT:]
        if rewards:
            means[step] = sum(rewards) / len(rewards), len(rewards)
    if not means:
        return None
    step = max(means, key=lambda step: (means[step][0], step))
    mean, count = means[step]
    return BestCheckpoint(complete[step], f"mean total reward {mean:.4g}, logged steps up to it: {count}")


def last_checkpoint(output_dir: str | Path, set_aside: bool) -> Path | None:
    """Return the newest complete checkpoint in `output_dir`, or None.

    `set_aside`: whether to rename half-written ones, with a line for each. Raises `UserError` when
    the newest complete one holds weights only (`--save_only_model true`), because a run can't
    resume without its optimizer's state.
    """
    folder = Path(output_dir)
    complete = complete_checkpoints(folder)
    if set_aside:
        for step, path in _checkpoints(folder).items():
            if step not in complete:
                _set_aside(path)
    if not complete:
        return None
    newest = complete[max(complete)]
    if not (newest / "scheduler.pt").is_file() and not any(newest.glob("global_step*")):
        start, first = newest, ""
        if (newest / "adapter_config.json").is_file():
            start, first = "MODEL", (f"merge its adapter (realsr-r1 export --checkpoint {newest} "
                                     "--output MODEL), then ")
        raise UserError(f"{newest} holds weights only, so the run in {folder} can't go on: {first}start a "
                        f"new run from it with --model_name_or_path {start} and another --output_dir, or "
                        f"remove {folder} to begin again")
    return newest


def require_same_run(output_dir: str | Path, settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise `UserError` where the run in `output_dir` was started with other settings.

    `names`: the settings that must be equal. They decide whether its checkpoint can be loaded, or
    which records come next.
    """
    file = Path(output_dir) / SETTINGS_FILE
    before = read_json(file, Settings) if file.is_file() else {}
    for name in names:
        if name in before and before[name] != settings.get(name):
            raise UserError(f"the run in {output_dir} was started with {name} {before[name]}, and this "
                            f"command has {settings.get(name)}: it can't go on with that; give the same, or "
                            "another --output_dir")


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in folder.iterdir() if path.is_dir()
            and (match := _NAME.fullmatch(path.name))}


def _set_aside(path: Path) -> None:
    number = 0
    while (target := path.with_name(f"incomplete-{path.name}.{number}")).exists():
        number += 1
    path.rename(target)
    print(f"{path} was only half written; set aside as {target.name}", flush=True)
