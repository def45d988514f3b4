"""A folder of token ids: memory-mapped Arrow shards, and a file that says what they were made from.

Many processes can make shards at once. A shard depends only on its records, the tokenizers and the
seed, and it gets its name only when it is whole. So after a stop the same command does the
unfinished work again, and the result is the same to the byte, whichever process made a shard.
Records that give no valid chain are left out; the schema of their shard says which ones and why.
tokenising.py makes the shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.json_yaml import parsed_json, read_json
from realsr_r1.core.schema import Count, Len, MinLen, Text, TypedDict
from realsr_r1.data.photos.sources import Item

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from realsr_r1.chain.processor import ChainProcessor

STORE_FILE = "tokens.json"
# This key of a shard's schema holds JSON: a list of [number of a record, why it gives no chain].
REJECTED = b"realsr_r1.rejected"
# 256 records are 10 MiB of ids at 512 px. A GPU makes them in under a minute, which is the work
# that is lost when a process is killed.
SHARD_RECORDS = 256
FORMAT = 2  # raise this when the same records and tokenizers would give other tokens
RejectedRecord = Annotated[list[Count | Text], Len(2, 2)]


class TokenizerNote(TypedDict):
    """By what tokens were made."""

    folder: Text
    fingerprint: Text


class SplitNote(TypedDict):
    """What the tokens of a split were made from."""

    dataset: Text
    records: Count
    seed: int
    fingerprint: Text


class StoreFile(TypedDict):
    """`STORE_FILE`, as `describe` makes it."""

    format: Count
    tokenizer: TokenizerNote
    splits: Annotated[dict[Text, SplitNote], MinLen(1)]


@dataclass(frozen=True)
class Source:
    """What a split is made from.

    `dataset_name`: a dataset folder, or a JSON of conversations. `numbers`: the numbers of the
    records, in order. `fingerprint`: a short name for the content of the records. `question`: what
    is asked of all records, or None where each record has a question of its own.
    """

    dataset_name: str
    split: str
    numbers: tuple[int, ...]
    fingerprint: str
    seed: int
    question: str | None = None


@dataclass(frozen=True)
class Shard:
    """A file that the store is to have, and the records in it.

    `number`: its number among all shards of the store.
    """

    number: int
    path: Path
    source: Source
    start: int
    stop: int


def tokenizer_fingerprint(processor: ChainProcessor) -> str:
    """Return a short name for everything that turns records into ids.

    That is the text tokenizer, the image tokenizer, the sizes of images, and the chain.
    """
    settings, image_tokenizer = processor.settings, processor.image_tokenizer
    digest = hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((settings.target_px, settings.grid_unit_px, settings.fit,
                        image_tokenizer.config.l2_normalised_codes)).encode())
    sections = processor.chain.sections
    # Tokens of the published chain keep the name that they had when it was the only one.
    if sections != ChainSpec.published().sections:
        digest.update(repr(sections).encode())
    for name, tensor in image_tokenizer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(sources: Mapping[str, Source], tokenizer: str, fingerprint: str) -> dict[str, Any]:
    """Return the content of `tokens.json`.

    `tokenizer`: the folder with the tokenizer, as information for a person.
    """
    return {"format": FORMAT, "tokenizer": {"folder": tokenizer, "fingerprint": fingerprint},
            "splits": {split: {"dataset": source.dataset_name, "records": len(source.numbers),
                               "seed": source.seed,
                               "fingerprint": digest([source.fingerprint, source.numbers])}
                       for split, source in sources.items()}}


def name_of(description: Mapping[str, Any]) -> str:
    """Return a folder name for the tokens that `description` describes.

    It doesn't depend on the places of the tokenizer and the dataset.
    """
    facts = [description["format"], description["tokenizer"]["fingerprint"],
             {split: [facts["fingerprint"], facts["seed"]] for split, facts in description["splits"].items()}]
    return digest(facts)


def digest(value: Any) -> str:
    """Return a short name (a hash) for plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def missing_shards(folder: Path, sources: Mapping[str, Source],
                   description: Mapping[str, Any]) -> list[Shard]:
    """Write `tokens.json`, and return the shards that aren't there yet, in order.

    Raises `UserError` where the folder holds tokens of another tokenizer or of other records, or
    anything else.
    """
    if (folder / STORE_FILE).is_file():
        found = _description(folder, description["tokenizer"])
        if name_of(found) != name_of(description):
            raise UserError(f"{folder} holds tokens of other records or another --seed; give another "
                            "--output_dir, or remove it")
    elif folder.is_dir() and not {STORE_FILE}.issuperset(path.name for path in folder.iterdir()
                                                         if not path.name.startswith(".")):
        raise UserError(f"{folder} has files that realsr-r1 pretokenise did not make; give a new folder")
    else:
        write_json(folder / STORE_FILE, description)
    return [shard for shard in plan_shards(folder, sources) if not shard.path.is_file()]


def plan_shards(folder: Path, sources: Mapping[str, Source]) -> list[Shard]:
    """Return all shards that the folder is to have, in order."""
    shards: list[Shard] = []
    for split, source in sources.items():
        records = len(source.numbers)
        for start, path in zip(range(0, records, SHARD_RECORDS), _files(folder, split, records), strict=True):
            shards.append(Shard(len(shards), path, source, start, min(start + SHARD_RECORDS, records)))
    return shards


def clear_partials(shards: Iterable[Shard]) -> None:
    """Remove what a killed process left of these shards.

    Call this only in the process that is going to make them.
    """
    for shard in shards:
        for partial in shard.path.parent.glob(f".{shard.path.name}.*.partial"):
            partial.unlink(missing_ok=True)


def _files(folder: Path, split: str, records: int) -> list[Path]:
    count = -(-records // SHARD_RECORDS)
    return [folder / f"{split}-{number:05d}-of-{count:05d}.arrow" for number in range(count)]


def _description(folder: Path, tokenizer: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of `tokens.json`.

    Raises `UserError` where this version can't read it, or where another tokenizer made the tokens
    (the message names both).
    """
    again = "make them again with realsr-r1 pretokenise"
    found = read_json(folder / STORE_FILE, StoreFile, f"{again} in another folder")
    if found["format"] != FORMAT:
        raise UserError(f"the tokens in {folder} are not in the format {FORMAT} of this realsr-r1 "
                        f"({folder / STORE_FILE}); {again} in another folder")
    made_by = found["tokenizer"]
    if made_by["fingerprint"] != tokenizer["fingerprint"]:
        raise UserError(
            f"the tokens in {folder} were made with the tokenizers and the chain of {made_by['folder']} "
            f"(fingerprint {made_by['fingerprint']}), and those of this command differ "
            f"({tokenizer['folder']}: {tokenizer['fingerprint']}); {again} --model_name_or_path "
            f"{tokenizer['folder']} --output_dir DIR, and the same --chain_settings")
    return found


def features() -> Features:
    """Return a shard's columns; `load_tokens` describes them."""
    from datasets import Features, List, Value

    return Features({"input_ids": List(Value("int32")), "sections": List(Value("int8")),
                     "length": Value("int32"),
                     "record": Value("int32")})


def rejected_records(shards: Iterable[Shard]) -> list[Item]:
    """Return the records that the finished ones of these shards leave out.

    An item's name is SPLIT:RECORD.
    """
    return [Item(f"{shard.source.split}:{number}", reason) for shard in shards if shard.path.is_file()
            for number, reason in _rejected(shard.path)]


def _rejected(path: Path) -> list[tuple[int, str]]:
    """Return (number of a record, why it gives no chain) for each record that a shard leaves out.

    Raises `UserError` that names a shard which was cut off.
    """
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            metadata = pyarrow.ipc.open_stream(file).schema.metadata or {}
            return parsed_json(metadata.get(REJECTED, b""), str(path), list[RejectedRecord])
    except (OSError, ValueError, UserError) as error:  # pyarrow's own errors are ValueErrors
        raise _cut(path, f"can't be read ({error})") from error


def is_store(folder: str | Path) -> bool:
    """Whether `realsr-r1 pretokenise` made this folder."""
    return (Path(folder) / STORE_FILE).is_file()


def records_fingerprint(folder: str | Path, split: str) -> str:
    """Return the fingerprint of the records that a split's tokens were made from."""
    return read_json(Path(folder) / STORE_FILE, StoreFile)["splits"][split]["fingerprint"]


def check_store(folder: Path) -> str:
    """Check that all shards of a folder of tokens are whole, and say what they hold.

    Raises `UserError` that names what is missing or cut.
    """
    splits = read_json(folder / STORE_FILE, StoreFile)["splits"]
    counts = {split: sum(map(len, _shards(folder, split, about["records"])))
              for split, about in splits.items()}
    return ", ".join(f"{split} {count:,}" for split, count in counts.items()) + " chains"


def load_tokens(folder: str | Path, split: str, tokenizer: Mapping[str, str]) -> Dataset:
    """Load a split, memory-mapped, as numpy.

    Its columns are `input_ids` (int32), `sections` (int8, numbers of `ChainSpec.parts`), `length`,
    and `record` (the record's number in the dataset's split). `tokenizer`: {"folder",
    "fingerprint"} of the model that will be trained. Raises `UserError` when another tokenizer made
    the tokens, and when a split or a shard is missing or empty.
    """
    from datasets import concatenate_datasets

    folder = Path(folder)
    description = _description(folder, tokenizer)
    if split not in description["splits"]:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(description['splits'])}")
    shards = _shards(folder, split, description["splits"][split]["records"])
    if not any(map(len, shards)):
        raise UserError(f"no record of {split} in {folder} makes a chain; realsr-r1 pretokenise says why")
    return concatenate_datasets([shard for shard in shards if len(shard)]).with_format("numpy")


def _shards(folder: Path, split: str, records: int) -> list[Dataset]:
    """Read all shards of a split. Raises `UserError` where one is missing or cut."""
    files = _files(folder, split, records)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(files)} shards of {split} are missing, the first "
                        f"{missing[0]}; run realsr-r1 pretokenise again with the same arguments")
    return [_read(path, min(SHARD_RECORDS, records - number * SHARD_RECORDS))
            for number, path in enumerate(files)]


def _read(path: Path, records: int) -> Dataset:
    from datasets import Dataset

    expected = records - len(_rejected(path))
    try:
        shard = Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise _cut(path, f"can't be read ({error})") from error
    if len(shard) != expected:
        raise _cut(path, f"holds {len(shard)} of its {expected} records")
    return shard


def _cut(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; remove it and run realsr-r1 pretokenise again with the same arguments")
