"""Whether a run goes on in its folder: one that has ended when more is asked of it, and any run only
in the setting that its checkpoint can be loaded in.

Knows files and settings; loads nothing. Everything is checked before anything is written, and
checkpoints are checked against the hashes in their markers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.pickles import require_harmless
from realsr_r1.core.run_files import SETTINGS_FILE, STATE_FILE, Settings, StateFile
from realsr_r1.training import manifest
from realsr_r1.training.checkpoints import complete_checkpoints, newest_checkpoint, put_aside, require_state
from realsr_r1.training.manifest import MARKER

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


def checkpoint_to_go_on_from(output: Path, args: TrainingArguments) -> Path | None:
    """Return the newest complete checkpoint that is as it was written; None where there was none.

    Half-written and damaged ones are set aside, with a line each. All ranks call it, and each reads a
    part of the files. Raises `UserError` on all ranks where no checkpoint is left, where the newest
    holds weights only, and, unless `--trust_checkpoint`, where it isn't ours or could run code.
    """
    is_first, damaged = args.process_index == 0, None
    while True:
        _wait_for_all()
        checkpoint = newest_checkpoint(output, set_aside=is_first)
        _wait_for_all()
        if checkpoint is None:
            break
        fault = None if args.trust_checkpoint else _fault_of(checkpoint, args)
        if fault is None:
            require_state(checkpoint)
            return checkpoint
        damaged = damaged or checkpoint.name
        if is_first:
            put_aside(checkpoint, f"is damaged ({fault})")
    if damaged:
        raise UserError(f"{output} has no checkpoint that isn't damaged ({damaged} was the newest): give "
                        f"another --output_dir, or remove {output} to begin again")
    return None


def _fault_of(checkpoint: Path, args: TrainingArguments) -> str | None:
    """Say what of a checkpoint is damaged, the same on all ranks; None where nothing is."""
    trust = "give --trust_checkpoint to go on from it, if you know who made it, or another --output_dir"
    listed, fault = None, None
    try:
        listed = manifest.read(checkpoint)
    except UserError as error:
        fault = str(error).removeprefix(f"{checkpoint}/")
    if listed is not None:
        names = manifest.share(list(listed), args.process_index, args.world_size)
        fault = manifest.difference(checkpoint, listed, names)
    fault = next((found for found in _of_all_ranks(fault) if found), None)
    if fault is not None:
        return fault
    if listed is None:
        raise UserError(f"{checkpoint} has no hashes of its files in its marker ({MARKER}): an older version "
                        f"or somebody else wrote it, and loading it could run code; {trust}")
    added = manifest.added_pickles(checkpoint, listed)
    if added:
        raise UserError(f"{checkpoint / added[0]} is not among the files that {MARKER} lists, and loading it "
                        f"could run code; {trust}")
    mine = sorted(checkpoint.glob("global_step*/*.pt"))[args.process_index::args.world_size]
    refused = None
    try:
        for file in mine:
            require_harmless(file, trust)
    except UserError as error:
        refused = str(error)
    refused = next((found for found in _of_all_ranks(refused) if found), None)
    if refused is not None:
        raise UserError(refused)
    return None


def _of_all_ranks(value: str | None) -> list[str | None]:
    from accelerate.utils import gather_object

    return gather_object([value])


def _wait_for_all() -> None:
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def require_same_setting(checkpoint: Path, args: TrainingArguments, use_peft: bool) -> None:
    """Raise `UserError` where a command can't load all of a checkpoint's state.

    transformers and DeepSpeed would begin with a new optimizer and schedule without a word, or fail
    deep inside. The message says what the checkpoint was made with, and the ways on. With
    `--reset_optimizer` its weights are enough, but for adapters.
    """
    made_with, now = Setting.of_checkpoint(checkpoint), Setting.of_command(args, use_peft)
    is_plain = not (made_with.has_adapter or now.has_adapter)
    if args.reset_optimizer and not is_plain:
        raise UserError(f"--reset_optimizer is not for adapters, and {checkpoint} was made with {made_with}, "
                        f"this command has {now}: leave it out, or begin a new run from the checkpoint's "
                        f"weights: realsr-r1 export --checkpoint {checkpoint} --output MODEL, then "
                        "--model_name_or_path MODEL and another --output_dir")
    if made_with == now or args.reset_optimizer:
        return
    weights = "go on from its weights and step alone with --reset_optimizer, " if is_plain else ""
    raise UserError(f"{checkpoint} was made with {made_with}, and this command has {now}: its optimizer's "
                    f"state can't be loaded so. Start with what it was made with, {weights}or begin a new "
                    "run from its weights: "
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
    checkpoint = newest_checkpoint(output, set_aside=False)
    require_state(checkpoint)
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
