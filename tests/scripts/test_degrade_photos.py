"""Whole photos are degraded at their own size, the same each time, and bad names are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from realsr_r1.core.errors import UserError

from ..small import load_script

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = Path(skimage.__file__).parent / "data"
TINY = str(ROOT / "configs" / "degradation" / "tiny.yaml")


@pytest.fixture(scope="module")
def script():
    return load_script("degrade_photos")


def test_photos_are_degraded_whole_and_the_same_each_time(script, tmp_path):
    for name in ("a", "b"):
        script.main(["--photos", str(PHOTOS), "--names", "coffee,chelsea", "--degradation", TINY,
                     "--longest_side", "120", "--output", str(tmp_path / name)])
    labels = json.loads((tmp_path / "a" / "labels.json").read_text(encoding="utf-8"))
    for name in ("coffee", "chelsea"):
        hq, lq, again = (np.asarray(Image.open(tmp_path / folder / f"{name}.png"), dtype=float)
                         for folder in ("a/hq", "a/lq", "b/lq"))
        assert hq.shape == lq.shape and max(hq.shape) == 120 and len(labels[name]) == 5
        assert (lq == again).all() and np.square(hq - lq).mean() > 10


def test_a_photo_that_is_not_there_is_named(script, tmp_path):
    with pytest.raises(UserError, match="no photo nobody"):
        script.main(["--photos", str(PHOTOS), "--names", "coffee,nobody", "--degradation", TINY,
                     "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
