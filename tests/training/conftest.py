"""A small dataset of real photos, and the embedded model's processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from realsr_r1.chain.processor import ChainProcessor


@pytest.fixture(scope="session")
def dataset(photos_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of three and two crops, with labels, tags and HQ images."""
    from realsr_r1 import create_json

    folder = tmp_path_factory.mktemp("data") / "dataset"
    assert not create_json.main(["--images", str(photos_dir), "--tags", str(photos_dir), "--output",
                                 str(folder),
                                 "--crop_px", "48", "--test_photos", "rocket,coffee", "--num_proc", "1"])
    return folder


@pytest.fixture(scope="session")
def processor(tiny_model: Path) -> ChainProcessor:
    """The embedded model's tokenizers and settings."""
    return ChainProcessor.from_pretrained(tiny_model)
