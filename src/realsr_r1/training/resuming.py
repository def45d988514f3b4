"""Whether a run goes on in its folder: one that has ended when more is asked of it, and any run only
in the setting that its checkpoint can be loaded in.

Knows files and settings; loads nothing. Everything is checked before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import read_json
from realsr_r1.core.run_files import SETTINGS_FILE, STATE_FILE, Settings, StateFile
from realsr_r1.training.checkpoints import MARKER, complete_checkpoints, last_checkpoint

if TYPE_CHECKING:
    from transformers import TrainingArguments

ADAPTER_FILE = "adapter_config.json"  # peft's
A_BIT = 0.05  # of an epoch: what the last step of a run may have been rounded by


@dataclass(frozen=True)
class Setting:
    """What a checkpoint's state was made with, and has to be loaded with.

    `deepspeed`: whether DeepSpeed ran it. `partitions`: what of it is divided among the processes:
    "nothing", "the optimizer" (ZeRO-1 and 2), or "everything" (ZeRO-3). `processes`: their number
    where DeepSpeed ran it, else 0, for then it doesn't matter. `has_adapter`: whether it trains
    adapters (LoRA).
    """

    deepspeed: bool
    partitions: str
    processes: int
    has_adapter: bool

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Setting:
        """Read it from the names of the checkpoint's files."""
        has_adapter = (checkpoint / ADAPTER_FILE).is_file()
        if not any(checkpoint.glob("global_step*")):
            return cls(False, "nothing", 0, has_adapter)
        parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
        is_whole = any(checkpoint.glob("global_step*/mp_rank_*_model_states.pt"))
        partitions = "the optimizer" if is_whole else "everything"
        return cls(True, partitions if parts else "nothing", max(1, parts), has_adapter)

    @classmethod
    def of_command(cls, args: TrainingArguments, use_peft: bool) -> Setting:
        """Read it from the settings of a command."""
        plugin = getattr(args, "deepspeed_plugin", None)
        if plugin is None:
            return cls(False, "nothing", 0, use_peft)
        stage = int(plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0))
        partitions = "everything" if stage == 3 else "the optimizer" if stage else "nothing"
        return cls(True, partitions, args.world_size if stage else 1, use_peft)

    def __str__(self) -> str:
        names = {"nothing": "DeepSpeed without ZeRO", "the optimizer": "DeepSpeed ZeRO-1 or 2",
                 "everything": "DeepSpeed ZeRO-3"}
        number = f" on {self.processes} process{'es' * (self.processes != 1)}" if self.processes else ""
        return (f"{names[self.partitions] if self.deepspeed else 'no DeepSpeed'}{number}"
                f"{' and LoRA' if self.has_adapter else ''}")


def require_same_setting(checkpoint: Path, args: TrainingArguments, use_peft: bool) -> None:
    """Raise `UserError` where a command can't load all of a checkpoint's state.

    transformers and DeepSpeed would begin with a new optimizer and schedule without a word, or fail
    deep inside. The message says what the checkpoint was made with, and the ways on.
    """
    made_with, now = Setting.of_checkpoint(checkpoint), Setting.of_command(args, use_peft)
    if made_with == now:
        return
    raise UserError(f"{checkpoint} was made with {made_with}, and this command has {now}: its optimizer's "
                    "state can't be loaded so. Start with what it was made with, or begin a new run from its "
                    "weights: "
                    f"realsr-r1 export --checkpoint {checkpoint} --output MODEL, then --model_name_or_path "
                    "MODEL and another --output_dir")


def is_more_asked(output: Path, args: TrainingArguments) -> bool:
    """Whether a command asks more steps or epochs of a finished run in `output` than it was made with."""
    file = output / SETTINGS_FILE
    before = read_json(file, Settings) if file.is_file() else {}
    steps, epochs = before.get("max_steps"), before.get("num_train_epochs")
    if steps is None or epochs is None:
        return False
    if steps > 0 and args.max_steps > 0:
        return args.max_steps > steps
    if steps <= 0 and args.max_steps <= 0:
        return args.num_train_epochs > epochs
    done, epoch = _reached(output)
    return args.max_steps > done if args.max_steps > 0 else args.num_train_epochs > epoch + A_BIT


def require_checkpoint(output: Path) -> str:
    """Return a line that says from where a finished run goes on.

    Raises `UserError` that names the way where it has kept nothing to go on from.
    """
    if not complete_checkpoints(output):
        raise UserError(f"{output} holds a finished run, and no checkpoint to go on from (--save_strategy "
                        f"no); start a new run from its model with --model_name_or_path {output} and another "
                        "--output_dir")
    checkpoint = last_checkpoint(output, set_aside=False)  # raises an error where it holds weights only
    return f"{output} holds a finished run, and more is asked: going on from {checkpoint.name}"


def reopen(output: Path) -> None:
    """Let a finished run count as unfinished again."""
    (output / MARKER).unlink(missing_ok=True)


def _reached(output: Path) -> tuple[int, float]:
    """(step, epoch) of the newest complete checkpoint; nothing could be more where there is none."""
    complete = complete_checkpoints(output)
    file = complete[max(complete)] / STATE_FILE if complete else None
    if file is None or not file.is_file():
        return 2**62, float("inf")
    state = read_json(file, StateFile)
    return state.get("global_step", 0), state.get("epoch") or 0.0
