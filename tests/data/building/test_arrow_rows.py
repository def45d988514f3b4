"""Arrow files of records: what `datasets` itself would write, and reads."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from datasets.arrow_writer import ArrowWriter

from realsr_r1.data.building.arrow_rows import BYTES_IN_MEMORY, RowWriter, write_info

RECORD = {"image_path": "images/a/0-lq.png", "problem": "Restore it.", "tag": ["boat", "sea"]}
FULL = {**RECORD, "hq_path": "images/a/0-hq.png", "degradation": ["light blur"] * 5,
        "descriptions": ["a", "b", "c"],
        "source": "a.png", "crop": [0, 1, 2, 3]}
FEATURES = {"image": datasets.Image(), "problem": datasets.Value("string"),
            "tag": datasets.List(datasets.Value("string")),
            "hq": datasets.Image(), "degradation": datasets.List(datasets.Value("string")),
            "descriptions": datasets.List(datasets.Value("string")), "source": datasets.Value("string"),
            "crop": datasets.List(datasets.Value("int32"))}


@pytest.mark.parametrize("record", [RECORD, FULL], ids=["published", "all keys"])
def test_rows_are_written_as_datasets_writes_them(record, tmp_path):
    columns = {key: {"image_path": "image", "hq_path": "hq"}.get(key, key) for key in record}
    features = datasets.Features({column: FEATURES[column] for column in columns.values()})
    paths = [key for key in ("image_path", "hq_path") if key in record]
    files = {key: bytes(BYTES_IN_MEMORY // 2 // len(paths)) for key in paths}
    row = {columns[key]: {"bytes": files[key], "path": value.rsplit("/")[-1]} if key in files else value
           for key, value in record.items()}
    writer = RowWriter(tmp_path / "ours.arrow", record)
    theirs = ArrowWriter(path=str(tmp_path / "theirs.arrow"), features=features)
    for number, tag in enumerate(["boat", ["sea", "\N{WAVE DASH}"], [], ["boat"], ["sea"]]):
        writer.add({**record, "problem": str(number), "another key": 1, "tag": tag}, files)
        theirs.write({**row, "problem": str(number), "tag": [tag] if isinstance(tag, str) else tag})
    writer.close()
    theirs.finalize()
    ours, reference = (pyarrow.ipc.open_stream(tmp_path / name).read_all()
                       for name in ("ours.arrow", "theirs.arrow"))
    assert ours.equals(reference, check_metadata=True)
    assert ours["tag"].to_pylist() == [["boat"], ["sea", "\N{WAVE DASH}"], [], ["boat"], ["sea"]]
    # written when enough bytes are in memory
    assert [len(chunk) for chunk in ours["image"].chunks] == [2, 2, 1]
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    write_info(tmp_path / "ours", record)
    datasets.DatasetInfo(features=features).write_to_directory(str(tmp_path / "theirs"))
    ours, reference = (json.loads((tmp_path / name / "dataset_info.json").read_text())
                       for name in ("ours", "theirs"))
    assert ours == reference
