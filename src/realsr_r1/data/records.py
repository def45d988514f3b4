"""Records of a dataset: their schema and checks, JSON lists in the published format, DatasetDicts.

The format has some keys more than the published one. Knows files and columns; other modules make LQ
images and decide what is trained.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from realsr_r1.chain.checks import check_text
from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, MinLen, Place, Text, TypedDict
from realsr_r1.core.texts import is_text

if TYPE_CHECKING:
    import datasets

DATASET_FILE = "dataset_dict.json"  # that of `datasets`, by which it knows a DatasetDict
INFO_FILE = "dataset_info.json"  # of each split, likewise
REQUIRED_KEYS = ("image_path", "problem", "tag")  # those of the published format

Record = dict[str, Any]


def _is_texts(count: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (isinstance(value, list) and all(map(is_text, value))
                          and count in (None, len(value)))


def _is_box(value: Any) -> bool:
    return (isinstance(value, list) and len(value) == 4
            and all(isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**31
                    for item in value))


# key -> (check, what it must be)
SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_path": (is_text, "the path of an image file"),
    "problem": (is_text, "a text"),
    "tag": (lambda value: is_text(value) or _is_texts()(value), "a list of texts, or one text"),
    "hq_path": (is_text, "the path of an image file"),
    "degradation": (_is_texts(5), "a list of five texts"),
    "descriptions": (_is_texts(), "a list of texts, one for each level of the chain"),
    "source": (is_text, "a text"),
    "crop": (_is_box, "four whole numbers: left, top, right, bottom"),
}


def usual_keys(records: Iterable[Any]) -> frozenset[str]:
    """Return the keys of the schema that most of the records have.

    A column must be there for all records or for none.
    """
    counts = Counter(frozenset(SCHEMA.keys() & record.keys()) for record in records
                     if isinstance(record, dict))
    return counts.most_common(1)[0][0] if counts else frozenset(REQUIRED_KEYS)


def check_record(record: Any, keys: Set[str]) -> None:
    """Raise `UserError` that names the key unless `record` has valid values for these keys.

    `keys`: keys of the schema. A record must be an object.
    """
    if not isinstance(record, dict):
        raise UserError(f"it is {_kind(record)}; it must be an object with {', '.join(REQUIRED_KEYS)}")
    for key, (check, what) in SCHEMA.items():
        if key not in record:
            if key in REQUIRED_KEYS or key in keys:
                raise UserError(f"it has no key {key!r}, which "
                                f"{'every record needs' if key in REQUIRED_KEYS else 'others have'}")
        elif key not in keys and key not in REQUIRED_KEYS:
            raise UserError(f"it has the key {key!r}, which most records don't have: give it to all, or to "
                            "none")
        elif not check(record[key]):
            raise UserError(f"its {key!r} must be {what}, not {_kind(record[key])}")


def check_labels(labels: Sequence[str], where: str) -> None:
    """Raise `UserError` unless the five labels can be read back from a chain.

    A chain divides them by commas. `where`: names the list.
    """
    for label in labels:
        if "," in label or not label.strip():
            raise UserError(f"{where} has the label {label[:60]!r}; one is a text without commas, and not "
                            "empty")
        check_text(label, "label", where)


def _kind(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    return repr(value)[:60]


def read_list(path: str | Path) -> list[Any]:
    """Return the content of a JSON file: a list with at least one record, which isn't checked yet.

    Raises `UserError` that names the file.
    """
    return read_json(path, Annotated[list[Any], MinLen(1)], "it is a list of records")


class DatasetFile(TypedDict):
    """`DATASET_FILE`."""

    splits: Annotated[list[Place], MinLen(1)]


class InfoFile(TypedDict, extra_items=Json):
    """`dataset_info.json` of a split: what `datasets` joins as texts when it combines splits."""

    description: NotRequired[Text]
    citation: NotRequired[Text]
    homepage: NotRequired[Text]
    license: NotRequired[Text]


def splits_of(folder: Path) -> list[str]:
    """Return the names of the splits in a dataset folder, each of which is a folder in it.

    Raises `UserError` that names the file which says so, where it can't be read.
    """
    way = "make it again with realsr-r1 create-json"
    splits = read_json(folder / DATASET_FILE, DatasetFile, way)["splits"]
    for split in splits:
        if not (folder / split).is_dir():
            raise UserError(f"{folder / DATASET_FILE} names the split {split!r}, and there is no such folder "
                            "beside it; copy the dataset again")
        if (folder / split / INFO_FILE).is_file():
            read_json(folder / split / INFO_FILE, InfoFile, way)
    return splits


def load_dataset_dict(path: str | Path) -> datasets.DatasetDict:
    """Load the DatasetDict saved in the folder `path`.

    Raises `UserError` that names the folder where there is none.
    """
    import datasets

    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no such dataset folder: {path}; make one with realsr-r1 create-json")
    if not (folder / DATASET_FILE).is_file():
        raise UserError(f"{path} is not a DatasetDict (no {DATASET_FILE}); make one with realsr-r1 "
                        "create-json")
    splits_of(folder)
    try:
        return datasets.load_from_disk(str(folder))
    except IndexError as error:  # datasets fails to join the tables of a split that has none
        raise UserError(f"{path} has a split without records; make it again without that split") from error
    except Exception as error:  # a value of another type in one of its files fails anywhere in datasets
        raise UserError(f"{path} can't be read as a DatasetDict ({error}); make it again with realsr-r1 "
                        "create-json"
                        ) from error


def require_columns(dataset: datasets.Dataset, columns: Iterable[str], reason: str) -> None:
    """Raise `UserError` unless `dataset` has all `columns`.

    `reason`: what needs them, e.g. "reward degradation".
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise UserError(f"the dataset has no column {', '.join(map(repr, missing))}, which {reason} needs; "
                        f"it has {', '.join(dataset.column_names)}")


def select_records(path: str | Path, split: str, needs: Mapping[str, Sequence[str]],
                   max_samples: int | None = None,
                   seed: int = 0) -> datasets.Dataset:
    """Return a split of the dataset in folder `path`, or `max_samples` random records of it.

    `seed` decides which ones. `needs`: name of a user of columns -> the columns it needs. Raises
    `UserError` for a missing split or column.
    """
    dataset = load_dataset_dict(path)
    if split not in dataset:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(dataset)}")
    records = dataset[split]
    for reason, columns in needs.items():
        require_columns(records, columns, reason)
    if max_samples is not None and max_samples < len(records):
        records = records.shuffle(seed=seed, keep_in_memory=True).select(range(max_samples))
        # Flatten in memory: joining columns would do it in a file beside the dataset.
        with without_bars():
            records = records.flatten_indices(keep_in_memory=True)
    return records


def read_rows(records: datasets.Dataset, numbers: Sequence[int], where: str) -> dict[str, list[Any]]:
    """Return records as columns, with decoded images.

    `where`: the dataset and its split, for messages. `tag` must be a list here; values that aren't
    known may be empty. Raises `UserError` that names a record (counted from 0) which can't be used.
    """
    from PIL import UnidentifiedImageError

    try:
        rows = records[list(numbers)]
    except MemoryError:
        raise
    except Exception:  # on a damaged file decoders raise all kinds: OSError, SyntaxError, struct.error, ...
        for number in numbers:
            try:
                records[number]
            except UnidentifiedImageError as error:  # its text names a file object, and differs in each run
                raise UserError(f"record {number} of {where} can't be read (an image in none of the known "
                                "formats)") from error
            except Exception as error:
                raise UserError(f"record {number} of {where} can't be read ({error})") from error
        raise
    images = {"image", "hq"} & rows.keys()
    for row, number in enumerate(numbers):
        for key in images:
            if rows[key][row] is None:
                raise UserError(f"record {number} of {where} has no image in {key!r}")
        for key in SCHEMA.keys() & rows.keys():
            value, (check, what) = rows[key][row], SCHEMA[key]
            if key == "tag":
                check, what = _is_texts(), "a list of texts"
            if (value or key in ("tag", "degradation")) and not check(value):
                raise UserError(f"{key!r} in record {number} of {where} must be {what}, not {_kind(value)}")
    return rows


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bars of `datasets` inside the block, for what takes a moment."""
    import datasets

    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def label_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Count how often each word of each of the five items occurs, item by item.

    The result is empty where there are no labels.
    """
    from realsr_r1.data.degradation.degrade import LABEL_ITEMS, LEVELS, RESIZES

    counts = {name: dict.fromkeys(RESIZES if name.endswith("resize") else LEVELS, 0) for name in LABEL_ITEMS}
    labelled = False
    for record in records:
        for name, label in zip(LABEL_ITEMS, record.get("degradation", ())):
            labelled = True
            word = label.split()[0] if label.split() else label
            counts[name][word] = counts[name].get(word, 0) + 1
    return counts if labelled else {}


def label_balance(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the counts of `label_counts` in percent, a line an item."""
    return [f"{name}: " + " ".join(f"{word} {100 * count / sum(words.values()):.0f}%"
                                   for word, count in words.items())
            for name, words in counts.items()]
