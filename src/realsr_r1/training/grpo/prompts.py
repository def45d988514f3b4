"""Records of a dataset as GRPO's trainer takes them.

They have `prompt` as ids, and the columns that rewards and samples use.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.settings import SETTINGS_FILE
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_folder
from realsr_r1.data.records import load_dataset_dict, select_records, without_bars
from realsr_r1.data.tokens.token_store import tokenizer_fingerprint
from realsr_r1.rewards.tags import tags_of
from realsr_r1.training.agreement import Agreement
from realsr_r1.training.manifest import files_of, hashed, is_whole, mark

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.chain.processor import ChainProcessor

LQ_COLUMN = "lq"  # not `image`: that name switches TRL's vision path on


def load_prompts(dataset_name: str, split: str, processor: ChainProcessor,
                 reward_columns: Mapping[str, Sequence[str]],
                 folder: str | Path, max_prompt_length: int, max_samples: int | None = None, seed: int = 0,
                 process: int = 0, processes: int = 1, question: str | None = None) -> Dataset:
    """Return a split with `prompt` (ids) and `lq`, which `image` is renamed to.

    Prompts are tokenised once, in folders inside `folder`. `reward_columns`: reward -> the columns
    it needs. `process` of `processes`: all processes call this, and each tokenises its part.
    `question`: what every prompt asks; by default each asks its record's question. Raises
    `UserError` for a missing column or split, and for a prompt that is longer than
    `max_prompt_length`.
    """
    from datasets import concatenate_datasets

    records = select_records(dataset_name, split, needed_columns(reward_columns), max_samples, seed)
    if question is not None:
        records = records.remove_columns("problem").add_column("problem", [question] * len(records))

    def tokenised(part: Dataset) -> Dataset:
        return _kept(folder, part, processor, lambda fingerprint: part.map(
            encode_prompts, batched=True, batch_size=64, desc=f"tokenising {split}", keep_in_memory=True,
            remove_columns=part.column_names, fn_kwargs={"processor": processor},
            new_fingerprint=fingerprint))

    count, agreement = max(1, min(processes, len(records))), Agreement()
    parts = [records.shard(count, index, contiguous=True) for index in range(count)]
    with agreement:
        for part in parts[process::processes]:
            tokenised(part)
    agreement.settle()
    prompts = concatenate_datasets([tokenised(part) for part in parts])  # they are there now
    longest = max((len(ids) for ids in prompts.with_format("numpy")["prompt"]), default=0)
    if longest > max_prompt_length:
        raise UserError(f"the longest prompt of {split} has {longest} tokens, more than "
                        f"--max_prompt_length {max_prompt_length}")
    return concatenate_datasets([records.rename_column("image", LQ_COLUMN), prompts], axis=1)


def dataset_tags(dataset_name: str) -> list[str]:
    """Return every tag of a dataset's records, in all splits: what a photo of it can have."""
    splits = load_dataset_dict(dataset_name).values()
    return sorted({tag for split in splits if "tag" in split.column_names
                   for record in split["tag"] for tag in tags_of(record)})


def require_levels(records: Dataset, processor: ChainProcessor, dataset: str, model: str) -> None:
    """Raise `UserError` when a dataset was made for a chain with other descriptions than the
    model's, for its questions ask for that chain.

    `dataset`, `model`: their folders, for the message.
    """
    levels = processor.chain.levels
    if len(records) and "descriptions" in records.column_names:
        described = len(records.select_columns(["descriptions"])[0]["descriptions"] or ())
        if described not in (0, len(levels)):
            raise UserError(f"{dataset} has {described} descriptions a record, and the chain of {model} has "
                            f"the levels {', '.join(levels) or 'of none'}: make the dataset with that chain "
                            "(realsr-r1 create-json --chain_settings FILE), or ask all photos the model's "
                            f"question with --chain_settings {model}/{SETTINGS_FILE}")


def other_question(records: Dataset, processor: ChainProcessor) -> str | None:
    """Return the question that most records ask, or None where it is the model's own."""
    asked = [question for question, _ in Counter(records["problem"]).most_common(1)]
    return None if asked in ([], [processor.chain.question]) else asked[0]


def needed_columns(reward_columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return what needs columns -> the columns, for prompts and all rewards."""
    return {"every prompt": ("image", "problem"),
            **{f"the {name} reward": columns for name, columns in reward_columns.items()}}


def encode_prompts(records: Mapping[str, Sequence[Any]], processor: ChainProcessor) -> dict[str,
                                                                                            list[list[int]]]:
    """Turn a batch of columns into `prompt` (ids), for `datasets.Dataset.map`."""
    spans = processor.encode_images([processor.fit(image) for image in records["image"]])
    return {"prompt": [processor.prompt_from_span(span, text)
                       for span, text in zip(spans, records["problem"], strict=True)]}


def _kept(folder: str | Path, records: Dataset, processor: ChainProcessor, make: Callable[[str], Dataset],
           *settings: Any) -> Dataset:
    """Return what `make(fingerprint)` gives, kept in a folder inside `folder`.

    The folder's name depends on `records`, the tokenizers and image sizes of `processor`, and
    `settings`, so a run that starts again with others makes it anew, and where a file is damaged.
    Reading is memory-mapped.
    """
    from datasets import load_from_disk

    fingerprint = _made_from(records, processor, settings)
    path = Path(folder) / fingerprint
    if not is_whole(path):
        made = make(fingerprint)
        with atomic_folder(path) as partial, without_bars():
            made.save_to_disk(str(partial))
            mark(partial, hashed(partial, files_of(partial)))
    return load_from_disk(str(path))


def _made_from(records: Dataset, processor: ChainProcessor, settings: tuple[Any, ...]) -> str:
    made_from = repr((records._fingerprint, tokenizer_fingerprint(processor), settings))
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]
