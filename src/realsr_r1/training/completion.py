"""Marks checkpoints as complete once every rank has written its part, and deletes old ones then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.core.files import open_to_others
from realsr_r1.training.checkpoints import ASIDE, best_checkpoint, complete_checkpoints
from realsr_r1.training.manifest import MARKER, Manifest, files_of, hashed, mark, share


class CompletionMarker(TrainerCallback):
    """Marks a checkpoint once every rank has written its part.

    Only then does it delete old checkpoints, as `--save_total_limit` asks, and those that were set
    aside. `keep_best`: whether the best one by its reward (`best_checkpoint`) stays.
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
        output = Path(args.output_dir)
        folder = output / f"checkpoint-{state.global_step}"
        manifest = _manifest_of(folder)
        if state.is_world_process_zero and folder.is_dir():  # the trainer keeps none that isn't finite
            open_to_others(folder)
            mark(folder, manifest)
            kept = {Path(state.best_model_checkpoint or "").name}
            if self.keep_best and (best := best_checkpoint(output, state.log_history)):
                kept.add(best.folder.name)
            self._delete_old(output, kept)

    def _delete_old(self, folder: Path, kept: set[str]) -> None:
        complete = complete_checkpoints(folder)
        for step in sorted(complete)[:-self.limit] if self.limit else ():
            if complete[step].name not in kept:
                (complete[step] / MARKER).unlink()  # first, so that a half-deleted checkpoint doesn't count
                shutil.rmtree(complete[step], ignore_errors=True)
        for aside in folder.glob(f"{ASIDE}*"):  # from here on nobody can want them
            shutil.rmtree(aside, ignore_errors=True)


def _manifest_of(folder: Path) -> Manifest:
    """The hashes of a checkpoint's files; each rank computes those of its own. All ranks must call it."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return hashed(folder, files_of(folder))
    torch.distributed.barrier()  # until all have written
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts: list[Manifest] = [{}] * ranks
    torch.distributed.all_gather_object(parts, hashed(folder, share(files_of(folder), rank, ranks)))
    return {name: entry for part in parts for name, entry in part.items()}
