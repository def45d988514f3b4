"""Prompts' ids, which GRPO makes once in its output folder and reads from there when it is started again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.data.token_store import tokenizer_fingerprint
from realsr_r1.files import atomic_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.processing import ChainProcessor


def stored(folder: str | Path, records: Dataset, processor: ChainProcessor, make: Callable[[str], Dataset],
           *settings: Any) -> Dataset:
    """What `make(fingerprint)` gives, kept in a folder inside `folder` that is named after what it is made from.

    That is `records`, the tokenizers and image sizes of `processor`, and `settings`: a run that is started again with other
    ones makes it anew. Reading is memory-mapped.
    """
    from datasets import load_from_disk

    fingerprint = _made_from(records, processor, settings)
    path = Path(folder) / fingerprint
    if not path.is_dir():
        made = make(fingerprint)
        with atomic_folder(path) as partial:
            made.save_to_disk(str(partial))
    return load_from_disk(str(path))


def _made_from(records: Dataset, processor: ChainProcessor, settings: tuple[Any, ...]) -> str:
    made_from = repr((records._fingerprint, tokenizer_fingerprint(processor), settings))
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]
