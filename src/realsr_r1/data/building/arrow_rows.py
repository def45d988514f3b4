"""Writes records as the Arrow files that `datasets` reads.

Image files become image columns; lists and texts stay what they are. pyarrow writes them, because
importing `datasets` takes a second, in every worker process. Beside the rows, `datasets` keeps its
names of the columns' types in such files, in the schema and in dataset_info.json; both are made
here from one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from realsr_r1.core.files import atomic_file
from realsr_r1.data.records import INFO_FILE, SCHEMA, Record

if TYPE_CHECKING:
    import pyarrow

COLUMN_OF_KEY = {"image_path": "image", "hq_path": "hq"}  # other keys are columns of the same name
BYTES_IN_MEMORY = 8 * 2**20  # of image files, before their rows are written


class RowWriter:
    """Writes records as rows of one Arrow file. The file is complete only after `close`.

    `like`: a record with the keys that all records of the file have.
    """

    def __init__(self, path: Path, like: Record) -> None:
        import pyarrow

        self._schema = _schema(like)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._file = pyarrow.OSFile(str(path), "wb")
        self._stream = pyarrow.ipc.new_stream(self._file, self._schema)

    def add(self, record: Record, files: Mapping[str, bytes]) -> None:
        """Add a row. A tag that is one string becomes a list of it.

        `files`: for each key of the record that names an image file, the bytes of that file (below
        2 GiB).
        """
        row = {key: record[key] for key in SCHEMA if key in record}
        if isinstance(row["tag"], str):
            row["tag"] = [row["tag"]]
        for key in files:
            row[key] = {"bytes": files[key], "path": Path(record[key]).name}
        self._rows.append({COLUMN_OF_KEY.get(key, key): value for key, value in row.items()})
        self._bytes += sum(map(len, files.values()))
        if self._bytes >= BYTES_IN_MEMORY:
            self._write()

    def close(self) -> None:
        self._write()
        self._stream.close()
        self._file.close()

    def _write(self) -> None:
        import pyarrow

        if self._rows:
            columns = [_array([row[field.name] for row in self._rows], field.type) for field in self._schema]
            self._stream.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=self._schema))
            self._rows, self._bytes = [], 0


def write_info(folder: Path, like: Record) -> None:
    """Write dataset_info.json into `folder`, for records that have the keys of `like`."""
    info = {"description": "", "citation": "", "homepage": "", "license": "", "features": _features(like)}
    with atomic_file(folder / INFO_FILE) as partial:
        partial.write_text(json.dumps(info), encoding="utf-8")


def _features(like: Record) -> dict[str, Any]:
    """For each column its type, as `datasets.Features.to_dict` names it.

    Keys of `like` that are not in the schema are left out.
    """
    text, image = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}
    texts, numbers = {"feature": text, "_type": "List"}, {
        "feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
    types = {"image_path": image, "hq_path": image, "tag": texts, "degradation": texts, "descriptions": texts,
             "crop": numbers}
    return {COLUMN_OF_KEY.get(key, key): types.get(key, text) for key in SCHEMA if key in like}


def _schema(like: Record) -> pyarrow.Schema:
    import pyarrow as pa

    arrow_types = {"Value": lambda kind: pa.type_for_alias(kind["dtype"]),
                   "List": lambda kind: pa.list_(pa.type_for_alias(kind["feature"]["dtype"])),
                   "Image": lambda kind: pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    features = _features(like)
    return pa.schema({column: arrow_types[kind["_type"]](kind) for column, kind in features.items()},
                     metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _array(values: Sequence[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    """The same array as `pyarrow.array(values, kind)`, for values without None.

    `pyarrow.array` imports pandas, which takes a quarter of a second in each process.
    """
    import pyarrow as pa

    if pa.types.is_struct(kind):
        parts = [_array([value[field.name] for value in values], field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind))
    if pa.types.is_int32(kind):
        return pa.Array.from_buffers(kind, len(values),
                                     [None, pa.py_buffer(np.array(values, dtype=np.int32))])
    if not pa.types.is_list(kind):
        values = [value.encode() if isinstance(value, str) else value for value in values]
    starts = _array(list(accumulate(map(len, values), initial=0)), pa.int32())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(
            starts, _array([item for value in values for item in value], kind.value_type))
    return pa.Array.from_buffers(kind, len(values),
                                 [None, starts.buffers()[1], pa.py_buffer(b"".join(values))])
