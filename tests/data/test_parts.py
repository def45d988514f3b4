"""How the work on a dataset is cut into parts."""

from __future__ import annotations

import pytest

from realsr_r1.data.parts import FEWEST_CROPS, MOST_PARTS, plan_parts
from realsr_r1.data.sources import FilePlace, Photo


@pytest.mark.parametrize("photos, counts", [(228, {"train": 9, "test_crops": 1}), (9, {"train": 56}), (1, {"train": 5000}),
                                            (3000, {"train": 1})], ids=str)
def test_parts_are_few_alike_and_hold_every_crop_once(photos, counts):
    parts = plan_parts((Photo(f"{number}.png", FilePlace(f"{number}.png")), counts) for number in range(photos))
    crops = [(task.photo.name, task.split, number) for part in parts for task in part.tasks for number in task.numbers]
    assert len(crops) == len(set(crops)) == photos * sum(counts.values())
    assert len(parts) <= MOST_PARTS
    sizes = sorted(part.size for part in parts)
    assert sizes[0] >= FEWEST_CROPS or len(parts) == 1
    even = sorted(part.size for part in parts if part.unit < parts[-1].unit)
    assert not even or even[-1] <= 2 * even[0]
    assert not even or parts[-1].size <= max(2 * FEWEST_CROPS, even[0])  # no process waits long for the last one
    for photo in {part.photos[0].name for part in parts}:  # parts that share a photo are one machine's
        assert len({part.unit for part in parts if photo in {one.name for one in part.photos}}) == 1
