"""How the work on a dataset is cut into parts."""

from __future__ import annotations

import pytest

from realsr_r1.data.building.parts import FEWEST_CROPS, MOST_PARTS, plan_parts
from realsr_r1.data.photos.sources import FilePlace, Photo


@pytest.mark.parametrize("photos, counts", [(228, {"train": 9, "test_crops": 1}), (9, {"train": 56}),
                                            (1, {"train": 5000}),
                                            (3000, {"train": 1}), (50, {"train": 1055, "test_crops": 269}),
                                            (40, {"train": 1, "test_crops": 126}), (2, {"train": 1})],
                                            ids=str)
@pytest.mark.parametrize("first", [None, {"test": 1}, {"train": 0}],
                         ids=["alike", "a test photo first", "nothing of the first"])
def test_parts_are_few_alike_and_hold_every_crop_once(photos, counts, first):
    named = [(Photo(f"{number}.png", FilePlace(f"{number}.png")), counts) for number in range(photos)]
    named[0] = (named[0][0], first or counts)
    parts = plan_parts(named)
    crops = [(task.photo.name, task.split, number) for part in parts for task in part.tasks
             for number in task.numbers]
    assert len(crops) == len(set(crops)) == sum(sum(counts.values()) for _, counts in named)
    assert len(parts) <= MOST_PARTS
    sizes = [part.size for part in parts]
    assert all(size >= FEWEST_CROPS for size in sizes[:-3])
    assert not sizes[:-3] or max(sizes[:-3]) <= 2.5 * min(sizes[:-3])
    # no process waits long for it
    assert not sizes or len(sizes) == MOST_PARTS or sizes[-1] <= max(FEWEST_CROPS, max(sizes) // 3)
    for photo in {part.photos[0].name for part in parts}:  # parts that share a photo are one machine's
        assert len({part.unit for part in parts if photo in {one.name for one in part.photos}}) == 1


def test_a_photo_is_not_decoded_for_a_few_crops():
    parts = plan_parts((Photo(f"{number}.png", FilePlace(f"{number}.png")), {"train": 56})
                       for number in range(9))
    assert [part.size for part in parts if part.photos[0].name == "0.png"] == [18, 19, 19]
    assert [part.size for part in parts if part.photos[0].name == "8.png"] == [18, 19, 9, 5, 5]
