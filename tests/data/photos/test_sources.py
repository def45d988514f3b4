"""What a listing of photos holds: folders and tars side by side, and what is wrong with names and
members.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.data.photos.decoding import decode
from realsr_r1.data.photos.sources import all_photos, list_photos


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 90, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two photos: a file in a subfolder, and a sample of a tar."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    (images / "more" / "file.png").write_bytes(png())
    return images


def write_tar(path, members, links=()):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "a.png"
            tar.addfile(info)


def listed(items):
    return {item.name: item.reason for item in items}


def test_files_and_tars_of_one_folder_are_listed_together(folder):
    write_tar(folder / "part.tar", {"a.png": png(), "a.txt": b"cat"})
    listing = list_photos(folder, None, "")
    assert [photo.name for photo in listing.photos] == ["part/a.png", "more/file.png"]
    assert all(decode(photo).size == (8, 8) for photo in listing.photos) and not listing.rejected
    assert all_photos(folder) == (listing.photos, [])


def test_a_file_that_a_tar_holds_too_is_left_out(folder):
    write_tar(folder / "part.tar", {"a.png": png()})
    (folder / "part").mkdir()
    (folder / "part" / "a.png").write_bytes(png())
    listing = list_photos(folder, None, "")
    assert [photo.name for photo in listing.photos] == ["part/a.png",
                                                        "more/file.png"] and not listing.rejected
    assert list(listed(listing.left_out)) == ["part/a.png"]


def test_links_and_second_images_of_a_sample_are_listed_with_their_reasons(folder):
    write_tar(folder / "part.tar", {"a.png": png(), "a.jpg": b"?", "only.txt": b"cat"}, links=["other.png"])
    listing = list_photos(folder, None, "")
    assert [photo.name for photo in listing.photos] == ["part/a.png", "more/file.png"]
    rejected = listed(listing.rejected)
    assert set(rejected) == {"part/other.png", "part/a.jpg", "part/only"}
    assert ("link" in rejected["part/other.png"]
            and "a.png is the photo of this sample" in rejected["part/a.jpg"])


def test_a_tar_that_was_cut_off_gives_what_is_whole_and_names_itself(folder):
    noise = bytes(range(256)) * 16
    write_tar(folder / "part.tar", {"a.png": png(), "b.png": png() + noise})
    data = (folder / "part.tar").read_bytes()
    (folder / "part.tar").write_bytes(data[:data.rindex(noise[:256]) - 1024])
    listing = list_photos(folder, None, "")
    assert "part.tar" in listed(listing.rejected)
    readable = []
    for photo in listing.photos:
        try:
            decode(photo)
            readable.append(photo.name)
        except UserError as error:
            assert photo.name == "part/b.png" and "ends inside this sample" in str(error)
    assert readable == ["part/a.png", "more/file.png"]


def test_a_name_that_no_file_can_have_is_listed(folder):
    long = "n" * 300
    write_tar(folder / "part.tar", {f"{long}.png": png()})
    listing = list_photos(folder, None, "")
    assert [photo.name for photo in listing.photos] == ["more/file.png"]
    assert listed(listing.rejected) == {f"part/{long}.png": "its name can't be a file's"}


def test_a_folder_of_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match="no images"):
        list_photos(tmp_path, None, "")


def test_a_tar_with_a_damaged_header_is_listed_and_its_neighbours_are_used(tmp_path):
    write_tar(tmp_path / "good.tar", {"a.png": png(), "b.png": png()})
    data = bytearray((tmp_path / "good.tar").read_bytes())
    header = data.index(b"b.png")
    for size in (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"9" * 12, b"too long"):  # of b.png
        data[header + 124:header + 124 + len(size)] = size
        data[header + 148:header + 156] = b" " * 8
        if size != b"too long":
            # the header's checksum is right
            data[header + 148:header + 156] = b"%06o\0 " % sum(data[header:header + 512])
        (tmp_path / "torn.tar").write_bytes(data)
        listing = list_photos(tmp_path, None, "train")
        assert {"good/a.png", "good/b.png"} <= {photo.name for photo in listing.photos}
        assert [item.name for item in listing.rejected] == ["torn.tar"], size


def test_a_member_that_its_header_makes_larger_than_the_tar_is_no_photo(tmp_path):
    write_tar(tmp_path / "part.tar", {"a.png": png(), "b.png": png()})
    photo = list_photos(tmp_path / "part.tar", None, "train").photos[1]
    huge = replace(photo, place=replace(photo.place,
                                        members={".png": (photo.place.members[".png"][0], 2**45)}))
    with pytest.raises(UserError, match="ends inside this sample"):
        decode(huge)


def test_of_two_members_of_one_name_the_first_is_taken_and_the_second_listed(tmp_path):
    write_tar(tmp_path / "part.tar", {"a.txt": b"first", "./a.txt": b"second", "a.png": png()})
    listing = list_photos(tmp_path, None, "train")
    assert listing.photos[0].place.read(".txt") == b"first"
    assert [(item.name, "twice" in item.reason) for item in listing.rejected] == [("part/./a.txt", True)]


def test_a_folder_called_like_a_crops_file_is_listed(tmp_path):
    for name in ("con.png", "con/00001-hq.png/x.png", "con/1-hq.png/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    listing = list_photos(tmp_path, None, "train")
    assert [item.name for item in listing.rejected] == ["con/00001-hq.png/x.png"]
    assert [photo.name for photo in listing.photos] == ["con/1-hq.png/x.png", "con.png"]


def test_what_is_wrong_with_a_photo_is_said_alike_each_time(tmp_path):
    write_tar(tmp_path / "part.tar", {"a.png": b"no photo"})
    for _ in range(2):
        with pytest.raises(UserError, match=r"^part/a.png can't be read as an image \(none of the known "
                                            r"formats\)$"):
            decode(list_photos(tmp_path, None, "train").photos[0])


def test_rows_of_a_dataset_without_image_or_with_damage_are_named(tmp_path):
    rows = {"image": [{"bytes": png(), "path": None}, None], "tag": ["caf\u00e9", "b"]}
    features = datasets.Features({"image": datasets.Image(), "tag": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    photos = list_photos(None, str(tmp_path / "set"), "train").photos
    with pytest.raises(UserError, match="row 1 of .* has no image"):
        decode(photos[1])
    with pytest.raises(UserError, match="drop --hf_split nope"):
        list_photos(None, str(tmp_path / "set"), "nope")
    shutil.copytree(tmp_path / "set", tmp_path / "damaged")
    arrow = next((tmp_path / "damaged").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes().replace("caf\u00e9".encode(), b"caf\xff\xff"))
    photos = list_photos(None, str(tmp_path / "damaged"), "train").photos
    with pytest.raises(UserError, match="row 0 of .* can't be read"):
        photos[0].place.columns()


def test_a_folder_that_may_not_be_read_is_listed(photos_dir):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        folder = Path(place)
        folder.chmod(0o755)
        for name in ("open", "closed", "names only"):
            (folder / name).mkdir()
            shutil.copy(photos_dir / "coffee.png", folder / name)
        (folder / "closed").chmod(0o000)
        (folder / "names only").chmod(0o444)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            listing = list_photos(folder, None, "train")
        finally:
            os.seteuid(user)
            for name in ("closed", "names only"):
                (folder / name).chmod(0o755)
    assert [photo.name for photo in listing.photos] == ["open/coffee.png"]
    assert {item.name: item.reason for item in listing.rejected} == {
        "closed": "the folder can't be read (Permission denied)",
        "names only/coffee.png": "it can't be opened: Permission denied"}
