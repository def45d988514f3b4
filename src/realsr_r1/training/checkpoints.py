"""Which checkpoints are complete, which is the best, and what a resumed run must have in common
with its start.

A complete checkpoint has a completion marker, which is written last (`completion`). Knows files
only, and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.run_files import SETTINGS_FILE, Settings
from realsr_r1.training.manifest import MARKER

_NAME = re.compile(r"checkpoint-(\d+)")
RESET = ", or go on from its weights alone with --reset_optimizer"
ASIDE = "incomplete-"  # what the name of a checkpoint that was set aside begins with
REWARDS_OF_A_CHECKPOINT = 10  # logged steps whose mean reward says how good a checkpoint is


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


def newest_checkpoint(folder: Path, set_aside: bool) -> Path | None:
    """Return the newest complete checkpoint in `folder`, or None.

    `set_aside`: whether to rename half-written ones, with a line for each.
    """
    complete = complete_checkpoints(folder)
    if set_aside:
        for step, path in _checkpoints(folder).items():
            if step not in complete:
                put_aside(path, "was only half written")
    return complete[max(complete)] if complete else None


def require_state(checkpoint: Path) -> None:
    """Raise `UserError` for a checkpoint of weights only (`--save_only_model true`).

    A run can't resume without its optimizer's state.
    """
    if (checkpoint / "scheduler.pt").is_file() or any(checkpoint.glob("global_step*")):
        return
    start, first, folder = checkpoint, "", checkpoint.parent
    if (checkpoint / "adapter_config.json").is_file():
        start, first = "MODEL", (f"merge its adapter (realsr-r1 export --checkpoint {checkpoint} "
                                 "--output MODEL), then ")
    raise UserError(f"{checkpoint} holds weights only, so the run in {folder} can't go on: {first}start a "
                    f"new run from it with --model_name_or_path {start} and another --output_dir, or "
                    f"remove {folder} to begin again")


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
                            f"another --output_dir{RESET if name == 'optim' else ''}")


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in folder.iterdir() if path.is_dir()
            and (match := _NAME.fullmatch(path.name))}


def put_aside(path: Path, why: str) -> None:
    """Rename a checkpoint that doesn't count, with one line that says why."""
    number = 0
    while (target := path.with_name(f"{ASIDE}{path.name}.{number}")).exists():
        number += 1
    path.rename(target)
    print(f"{path} {why}; set aside as {target.name}", flush=True)
