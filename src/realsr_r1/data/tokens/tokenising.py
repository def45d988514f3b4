"""Records to shards of token ids: chooses the records of a split, and makes its shards one by one.

token_store.py defines a shard and reads a folder of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file
from realsr_r1.core.texts import escaped, read_text
from realsr_r1.data.tokens.samples import Sample
from realsr_r1.data.tokens.token_store import REJECTED, Shard, Source, digest, features

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.chain.processor import ChainProcessor

BATCH_RECORDS = 64  # the number of records whose images are in memory at once


def open_source(dataset_name: str, split: str, seed: int, max_samples: int | None = None,
                question: str | None = None) -> Source:
    """Return a split to be tokenised, or `max_samples` records of it drawn with `seed`.

    `question`: what is asked of all records; by default each record asks its own
    (a conversation always does). Raises `UserError` for bad data.
    """
    records = _records(dataset_name, split)
    fingerprint = records._fingerprint
    if Path(dataset_name).suffix == ".json":
        images = [(path, (found := Path(path).stat()).st_size, found.st_mtime_ns)
                  for paths in records["images"] for path in paths]
        fingerprint = digest([read_text(Path(dataset_name)), images, records["fault"][:]])
        question = None
    if question is not None:
        fingerprint = digest([fingerprint, question])
    return Source(dataset_name, split, tuple(drawn(len(records), max_samples, seed)), fingerprint, seed,
                  question)


def drawn(count: int, max_samples: int | None, seed: int) -> list[int]:
    """Return all record numbers in order, or `max_samples` of them in random order."""
    import numpy

    if max_samples is None or max_samples >= count:
        return list(range(count))
    return numpy.random.default_rng(seed).permutation(count)[:max_samples].tolist()


def _records(dataset_name: str, split: str) -> Dataset:
    from realsr_r1.data.records import select_records
    from realsr_r1.data.tokens.cold_start import COLUMNS
    from realsr_r1.data.tokens.conversations import read_conversations

    if Path(dataset_name).suffix == ".json":
        if split != "train":
            raise UserError(f"{dataset_name} has no split {split!r}: a JSON of conversations is all train")
        return read_conversations(dataset_name)
    records = select_records(dataset_name, split, {"the cold start": COLUMNS})
    if not len(records):
        raise UserError(f"the split {split} of {dataset_name} has no records")
    return records


class ShardWriter:
    """Makes one shard after the other.

    `processor`: its image tokenizer is on the device that is to be used.
    """

    def __init__(self, processor: ChainProcessor):
        self.processor = processor
        # Opened sources are kept: opening a JSON of conversations checks all of it.
        self._opened: dict[tuple[str, str], Dataset] = {}

    def write(self, shard: Shard) -> int:
        """Tokenise a shard's records and write them.

        Returns their number, which includes the records that give no chain.
        """
        import pyarrow

        source, schema = shard.source, features().arrow_schema
        numbers = source.numbers[shard.start:shard.stop]
        tables, rejected = [], []
        for start in range(0, len(numbers), BATCH_RECORDS):
            made, bad = self._samples(source, numbers[start:start + BATCH_RECORDS])
            rejected += bad
            tables.append(pyarrow.table({
                "input_ids": [sample.input_ids for _, sample in made],
                "sections": [sample.sections for _, sample in made],
                "length": [len(sample.input_ids) for _, sample in made],
                "record": [number for number, _ in made]}, schema=schema))
        schema = schema.with_metadata({**schema.metadata, REJECTED: json.dumps(rejected)})
        with atomic_file(shard.path) as partial, pyarrow.OSFile(str(partial), "wb") as file:
            with pyarrow.ipc.new_stream(file, schema) as writer:
                for table in tables:
                    writer.write_table(table)
        return len(numbers)

    def _samples(self, source: Source, numbers: Sequence[int]) -> tuple[list[tuple[int, Sample]],
                                                                        list[tuple[int, str]]]:
        """Return (record number, sample), and (record number, reason) for those without a chain."""
        from realsr_r1.data.records import read_rows

        where, key = f"{source.dataset_name} ({source.split})", (source.dataset_name, source.split)
        if key not in self._opened:
            self._opened[key] = _records(*key)
        try:
            rows = read_rows(self._opened[key], numbers, where)
            if source.question is not None:
                rows["problem"] = [source.question] * len(numbers)
            return list(zip(numbers, _encode(rows, numbers, self.processor, source.seed), strict=True)), []
        except UserError as error:
            if len(numbers) == 1:
                record, reason = f"record {numbers[0]} of {where}", escaped(str(error))
                return [], [(numbers[0], reason if record in reason else f"{record}: {reason}")]
        parts = [self._samples(source, [number]) for number in numbers]
        return [one for made, _ in parts for one in made], [one for _, bad in parts for one in bad]


def _encode(rows: Mapping[str, Sequence[Any]], numbers: Sequence[int], processor: ChainProcessor,
            seed: int) -> list[Sample]:
    from realsr_r1.data.tokens.cold_start import encode_records
    from realsr_r1.data.tokens.conversations import encode_conversations

    return encode_conversations(rows, processor) if "values" in rows else encode_records(rows, numbers,
                                                                                         processor, seed)
