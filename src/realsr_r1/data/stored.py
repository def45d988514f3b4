"""Datasets that a stage makes once in its output folder and reads from there when it is started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.files import atomic_folder

if TYPE_CHECKING:
    from datasets import Dataset


def stored(folder: str | Path, make: Callable[[], Dataset]) -> Dataset:
    """The dataset in `folder`, made with `make` if it isn't there yet. Reading is memory-mapped."""
    from datasets import load_from_disk

    if not Path(folder).is_dir():
        made = make()
        with atomic_folder(folder) as partial:
            made.save_to_disk(str(partial))
    return load_from_disk(str(folder))
