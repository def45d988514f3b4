"""A folder of token ids: memory-mapped Arrow shards that many processes make at once, and the file that says what made them.

A shard is a function of its records, the tokenizers and the seed, and appears under its name only when it is whole. So work
that was killed is done again by the same command, and the result is the same to the byte, whoever made which shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.data.sections import Sample
from realsr_r1.errors import UserError
from realsr_r1.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from realsr_r1.processing import ChainProcessor

STORE_FILE = "tokens.json"
SHARD_RECORDS = 256  # 10 MiB of ids at 512 px, under a minute on a GPU: what a killed process has to do again
BATCH_RECORDS = 64  # records whose images are in memory at once
FORMAT = 1  # raise when the same records and tokenizers would give other tokens


@dataclass(frozen=True)
class Source:
    """What a split is made from. `dataset_name`: a dataset folder, or a JSON of conversations. `numbers`: the records, in order.

    `fingerprint`: of the records.
    """

    dataset_name: str
    split: str
    numbers: tuple[int, ...]
    fingerprint: str
    seed: int


@dataclass(frozen=True)
class Shard:
    """A file to be, and the records in it. `number`: of the shard among all of the store."""

    number: int
    path: Path
    source: Source
    start: int
    stop: int


def tokenizer_fingerprint(processor: ChainProcessor) -> str:
    """Names what turns records into ids: the text tokenizer, the image tokenizer, and the sizes of images."""
    settings, image_tokenizer = processor.settings, processor.image_tokenizer
    digest = hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((settings.target_px, settings.grid_unit_px, settings.fit,
                        image_tokenizer.config.l2_normalised_codes)).encode())
    for name, tensor in image_tokenizer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_source(dataset_name: str, split: str, seed: int, max_samples: int | None = None) -> Source:
    """A split to be tokenised, or `max_samples` records of it drawn with `seed`. Raises `UserError` for bad data."""
    records = _records(dataset_name, split)
    fingerprint = records._fingerprint
    if Path(dataset_name).suffix == ".json":
        images = [(path, (found := Path(path).stat()).st_size, found.st_mtime_ns) for paths in records["images"] for path in paths]
        fingerprint = _digest([Path(dataset_name).read_text(encoding="utf-8"), images])
    return Source(dataset_name, split, tuple(drawn(len(records), max_samples, seed)), fingerprint, seed)


def drawn(count: int, max_samples: int | None, seed: int) -> list[int]:
    """All record numbers in order, or `max_samples` of them in random order."""
    import numpy

    if max_samples is None or max_samples >= count:
        return list(range(count))
    return numpy.random.default_rng(seed).permutation(count)[:max_samples].tolist()


def _records(dataset_name: str, split: str) -> Dataset:
    from realsr_r1.data.cold_start import COLUMNS
    from realsr_r1.data.conversations import read_conversations
    from realsr_r1.data.dataset import select_records

    if Path(dataset_name).suffix == ".json":
        if split != "train":
            raise UserError(f"{dataset_name} has no split {split!r}: a JSON of conversations is all train")
        return read_conversations(dataset_name)
    records = select_records(dataset_name, split, {"the cold start": COLUMNS})
    if not len(records):
        raise UserError(f"the split {split} of {dataset_name} has no records")
    return records


def describe(sources: Mapping[str, Source], tokenizer: str, fingerprint: str) -> dict[str, Any]:
    """What `tokens.json` says. `tokenizer`: the folder that has it, for a person to read."""
    return {"format": FORMAT, "tokenizer": {"folder": tokenizer, "fingerprint": fingerprint},
            "splits": {split: {"dataset": source.dataset_name, "records": len(source.numbers), "seed": source.seed,
                               "fingerprint": _digest([source.fingerprint, source.numbers])}
                       for split, source in sources.items()}}


def name_of(description: Mapping[str, Any]) -> str:
    """A folder name for tokens made as `description` says, wherever the tokenizer and the dataset lie."""
    facts = [description["format"], description["tokenizer"]["fingerprint"],
             {split: [facts["fingerprint"], facts["seed"]] for split, facts in description["splits"].items()}]
    return _digest(facts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def missing_shards(folder: Path, sources: Mapping[str, Source], description: Mapping[str, Any]) -> list[Shard]:
    """Write `tokens.json`, and return the shards that aren't there yet, in order.

    Raises `UserError` where the folder holds tokens of another tokenizer, of other records, or something else.
    """
    if (folder / STORE_FILE).is_file():
        found = _description(folder, description["tokenizer"])
        if name_of(found) != name_of(description):
            raise UserError(f"{folder} holds tokens of other records or another --seed; give another --output_dir, or remove it")
    elif folder.is_dir() and not {STORE_FILE}.issuperset(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise UserError(f"{folder} has files that realsr-r1 pretokenise did not make; give a new folder")
    else:
        write_json(folder / STORE_FILE, description)
    shards: list[Shard] = []
    for split, source in sources.items():
        records = len(source.numbers)
        for start, path in zip(range(0, records, SHARD_RECORDS), _files(folder, split, records), strict=True):
            shards.append(Shard(len(shards), path, source, start, min(start + SHARD_RECORDS, records)))
    return [shard for shard in shards if not shard.path.is_file()]


def clear_partials(shards: Iterable[Shard]) -> None:
    """Remove what a killed process left of these shards. Only who is going to make them may do so."""
    for shard in shards:
        for partial in shard.path.parent.glob(f".{shard.path.name}.*.partial"):
            partial.unlink(missing_ok=True)


def _files(folder: Path, split: str, records: int) -> list[Path]:
    count = -(-records // SHARD_RECORDS)
    return [folder / f"{split}-{number:05d}-of-{count:05d}.arrow" for number in range(count)]


def _description(folder: Path, tokenizer: Mapping[str, str]) -> dict[str, Any]:
    """What `tokens.json` says. Raises `UserError` where this code can't read it, or another tokenizer made them (naming both)."""
    found, again = read_json(folder / STORE_FILE), "make them again with realsr-r1 pretokenise"
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"the tokens in {folder} are not in the format {FORMAT} of this realsr-r1 ({folder / STORE_FILE}); "
                        f"{again} in another folder")
    made_by = found["tokenizer"]
    if made_by["fingerprint"] != tokenizer["fingerprint"]:
        raise UserError(
            f"the tokens in {folder} were made by the tokenizers of {made_by['folder']} (fingerprint {made_by['fingerprint']}), "
            f"and {tokenizer['folder']} has others ({tokenizer['fingerprint']}); {again} "
            f"--model_name_or_path {tokenizer['folder']} --output_dir DIR")
    return found


class ShardWriter:
    """Makes one shard after the other. `processor`: with the image tokenizer on the device that is to be used."""

    def __init__(self, processor: ChainProcessor):
        self.processor = processor
        self._opened: dict[tuple[str, str], Dataset] = {}  # a JSON of conversations is checked when it is opened

    def write(self, shard: Shard) -> int:
        """Tokenise a shard's records and write it; returns how many they are."""
        import pyarrow

        from realsr_r1.data.dataset import read_rows

        source, schema = shard.source, _features().arrow_schema
        where = f"{source.dataset_name} ({source.split})"
        key = source.dataset_name, source.split
        if key not in self._opened:
            self._opened[key] = _records(*key)
        with atomic_file(shard.path) as partial:
            with pyarrow.OSFile(str(partial), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
                for start in range(shard.start, shard.stop, BATCH_RECORDS):
                    numbers = source.numbers[start:min(start + BATCH_RECORDS, shard.stop)]
                    rows = read_rows(self._opened[key], numbers, where)
                    try:
                        samples = _encode(rows, numbers, self.processor, source.seed)
                    except UserError as error:
                        raise UserError(f"{where}: {error}") from error
                    writer.write_table(pyarrow.table({
                        "input_ids": [sample.input_ids for sample in samples],
                        "sections": [sample.sections for sample in samples],
                        "length": [len(sample.input_ids) for sample in samples]}, schema=schema))
        return shard.stop - shard.start


def _encode(rows: Mapping[str, Sequence[Any]], numbers: Sequence[int], processor: ChainProcessor, seed: int) -> list[Sample]:
    from realsr_r1.data.cold_start import encode_records
    from realsr_r1.data.conversations import encode_conversations

    return encode_conversations(rows, processor) if "values" in rows else encode_records(rows, numbers, processor, seed)


def _features() -> Features:
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32")), "sections": List(Value("int8")), "length": Value("int32")})


def is_store(folder: str | Path) -> bool:
    """Whether `realsr-r1 pretokenise` made this folder."""
    return (Path(folder) / STORE_FILE).is_file()


def records_fingerprint(folder: str | Path, split: str) -> str:
    """Names the records that the tokens of a split are of."""
    return read_json(Path(folder) / STORE_FILE)["splits"][split]["fingerprint"]


def load_tokens(folder: str | Path, split: str, tokenizer: Mapping[str, str]) -> Dataset:
    """A split: `input_ids` (int32), `sections` (int8, numbers of `sections.PARTS`) and `length`, memory-mapped, as numpy.

    `tokenizer`: {"folder", "fingerprint"} of the model that will be trained. Raises `UserError` when another made the
    tokens, and when a split or a shard is missing.
    """
    from datasets import concatenate_datasets

    folder = Path(folder)
    description = _description(folder, tokenizer)
    if split not in description["splits"]:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(description['splits'])}")
    records = description["splits"][split]["records"]
    files = _files(folder, split, records)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(files)} shards of {split} are missing, the first {missing[0]}; run realsr-r1 "
                        "pretokenise again with the same arguments")
    return concatenate_datasets([_read(path, min(SHARD_RECORDS, records - number * SHARD_RECORDS))
                                 for number, path in enumerate(files)]).with_format("numpy")


def _read(path: Path, records: int) -> Dataset:
    from datasets import Dataset

    try:
        shard = Dataset.from_file(str(path))
        found = f"holds {len(shard)} of its {records} records"
    except (OSError, ValueError) as error:
        shard, found = (), f"can't be read ({error})"
    if len(shard) != records:
        raise UserError(f"{path} {found}; remove it and run realsr-r1 pretokenise again with the same arguments")
    return shard
