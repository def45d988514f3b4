"""Promises of the perceptual hash: copies are recognised, different photos are not taken for
copies.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image

from realsr_r1.data.photos.near_duplicates import Hashes, hash_photos, perceptual_hash
from realsr_r1.data.photos.sources import list_photos


@pytest.fixture(scope="module")
def photos(photos_dir):
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(photos_dir.glob("*.png"))}


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("change", [
    lambda image: as_jpeg(image, 30), lambda image: image.resize((image.width // 3, image.height // 3)),
    lambda image: image.point(lambda value: min(255,
                                                int(1.15 * value))),
                                                lambda image: image.convert("L").convert("RGB")],
    ids=["compressed", "scaled down", "brighter", "grey"])
def test_a_changed_copy_is_recognised_as_its_photo_and_no_other(photos, change):
    known = Hashes(list(photos), [perceptual_hash(image) for image in photos.values()])
    assert [known.like(change(image)) for image in photos.values()] == list(photos)


def test_different_photos_are_not_alike(photos):
    for name, image in photos.items():
        others = {other: picture for other, picture in photos.items() if other != name}
        assert Hashes(list(others),
                      [perceptual_hash(picture) for picture in others.values()]).like(image) is None
    assert Hashes().like(next(iter(photos.values()))) is None


def test_twins_are_found_with_the_first_of_them_kept_and_hashes_are_kept_in_files(photos_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    with Image.open(photos_dir / "coffee.png") as photo:
        for name, size in (("a.png", 300), ("b.png", 200), ("c.png", 100)):
            photo.resize((size, size)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    photos = list_photos(tmp_path / "photos", None, "").photos
    hashes = hash_photos(photos, tmp_path / "hashes", 1)
    assert hashes.names == ["a.png", "b.png", "c.png"]
    assert hashes.twins() == {"b.png": "a.png", "c.png": "a.png"}
    (tmp_path / "photos" / "a.png").unlink()
    assert hash_photos(photos, tmp_path / "hashes", 1) == hashes
