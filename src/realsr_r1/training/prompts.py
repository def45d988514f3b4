"""Records of a dataset as GRPO's trainer takes them: `prompt` as ids, and the columns that rewards and samples use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.data.dataset import load_dataset_dict, require_columns
from realsr_r1.data.stored import stored
from realsr_r1.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.processing import ChainProcessor

LQ_COLUMN = "lq"  # not `image`: that name switches TRL's vision path on


def load_prompts(dataset_name: str, split: str, processor: ChainProcessor, reward_columns: Mapping[str, Sequence[str]],
                 folder: str | Path, max_prompt_length: int, max_samples: int | None = None, seed: int = 0) -> Dataset:
    """A split with `prompt` (ids) and without `image` (it becomes `lq`). Tokenised once, in a folder inside `folder`.

    `reward_columns`: reward -> columns it needs. Raises `UserError` for a missing column or split and for a prompt that
    is longer than `max_prompt_length`.
    """
    records = select_records(dataset_name, split, reward_columns, max_samples, seed)

    def encode() -> Dataset:
        encoded = records.map(encode_prompts, batched=True, batch_size=64, desc=f"tokenising {split}",
                              keep_in_memory=True, fn_kwargs={"processor": processor})
        return encoded.rename_column("image", LQ_COLUMN)

    prompts = stored(Path(folder) / _made_from(records, processor), encode)
    longest = max((len(ids) for ids in prompts.with_format("numpy")["prompt"]), default=0)
    if longest > max_prompt_length:
        raise UserError(f"the longest prompt of {split} has {longest} tokens, more than "
                        f"--max_prompt_length {max_prompt_length}")
    return prompts


def _made_from(records: Dataset, processor: ChainProcessor) -> str:
    """A name for what prompts are made from: a run that is started again with other data or tokenizers makes them anew."""
    digest = hashlib.sha256(records._fingerprint.encode())
    digest.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((processor.settings.target_px, processor.settings.grid_unit_px)).encode())
    for tensor in processor.image_tokenizer.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def select_records(dataset_name: str, split: str, reward_columns: Mapping[str, Sequence[str]],
                   max_samples: int | None, seed: int) -> Dataset:
    """A split, or `max_samples` records of it drawn with `seed`, checked for the columns that prompts and rewards need."""
    dataset = load_dataset_dict(dataset_name)
    if split not in dataset:
        raise UserError(f"{dataset_name} has no split {split!r}; it has {', '.join(dataset)}")
    records = dataset[split]
    require_columns(records, ("image", "problem"), "every prompt")
    for reward, columns in reward_columns.items():
        require_columns(records, columns, f"the {reward} reward")
    if max_samples is not None and max_samples < len(records):
        records = records.shuffle(seed=seed, keep_in_memory=True).select(range(max_samples))
    return records


def encode_prompts(records: Mapping[str, Sequence[Any]], processor: ChainProcessor) -> dict[str, list[list[int]]]:
    """A batch of columns -> `prompt` (ids), for `datasets.Dataset.map`."""
    spans = processor.encode_images([processor.fit(image) for image in records["image"]])
    return {"prompt": [processor.prompt_from_span(span, text)
                       for span, text in zip(spans, records["problem"], strict=True)]}
