"""scripts/tools/split_photos.py: a split as two folders of photos whose names go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ..small import exit_code, load_script, records, write_dataset


@pytest.fixture(scope="module")
def main():
    return load_script("split_photos").main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", train=1, test=5)


def test_a_split_becomes_pairs_of_lq_and_hq_photos_with_their_sources_names(main, dataset, tmp_path, capsys):
    argv = ["--dataset_name", str(dataset), "--output", str(tmp_path / "out")]
    assert exit_code(main, argv) == 0
    names = {kind: sorted(path.name for path in (tmp_path / "out" / kind).iterdir()) for kind in ("lq", "hq")}
    assert names["lq"] == names["hq"] and len(names["lq"]) == 5
    pixels = {kind: [Image.open(tmp_path / "out" / kind / name) for name in names[kind]] for kind in names}
    columns = records(5)
    pairs = [(lq.tobytes(), hq.tobytes()) for lq, hq in zip(columns["image"], columns["hq"], strict=True)]
    for name, lq, hq in zip(names["lq"], pixels["lq"], pixels["hq"], strict=True):
        source = columns["source"][pairs.index((lq.tobytes(), hq.tobytes()))]
        assert name.startswith(f"{Path(source).stem}-")
    assert exit_code(main, argv) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_fewer_samples_are_the_first_of_more(main, dataset, tmp_path):
    for count in ("2", "4"):
        argv = ["--dataset_name", str(dataset), "--samples", count, "--output", str(tmp_path / count)]
        assert exit_code(main, argv) == 0
    fewer, more = ({path.name: path.read_bytes() for path in (tmp_path / count / "lq").iterdir()}
                   for count in ("2", "4"))
    assert len(fewer) == 2 and fewer.items() <= more.items()


def test_bad_input_is_named(main, dataset, tmp_path, capsys):
    without = write_dataset(tmp_path / "without", without=("hq",), train=1, test=1)
    for folder, more, named in ((dataset, ["--split", "test"],
                                 "has no split 'test'; it has train, test_crops"),
                                (tmp_path / "nowhere", [], f"no such dataset folder: {tmp_path / 'nowhere'}"),
                                (without, [], "no column 'hq'")):
        assert exit_code(main, ["--dataset_name", str(folder), "--output", str(tmp_path / "out"), *more]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
