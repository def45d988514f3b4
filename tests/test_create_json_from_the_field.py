"""What users of such programs met in public trackers, through realsr-r1 create-json: the published
script's own list, tags divided by other marks, files of other kinds, and files from macOS.
"""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from pathlib import Path

import pytest

from realsr_r1.create_json import main
from realsr_r1.data.records import load_dataset_dict

from .small import exit_code, photo

QUESTION = ("Look at how this photo was damaged and restore it step by step. Here it is: <|image|>. Answer "
            "in this form: <degradation> ... </degradation> <rough_image> ... </rough_image>.")
TINY = str(Path(__file__).parents[1] / "configs" / "degradation" / "tiny.yaml")


def make(source: Path, output: Path, *more: str) -> int:
    return exit_code(main, ["--images", str(source), "--output", str(output), "--degradation", TINY,
                            "--crop_px", "48", "--num_proc", "1", *more])


def folder_of(tmp_path: Path, names: list[str], tags: str = "cat, fur") -> tuple[Path, Path]:
    """Photos of these names (their suffixes say the format), and a folder of tags for each."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    images, texts = tmp_path / "images", tmp_path / "tags"
    for number, name in enumerate(names):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".heic": "HEIF", ".heif": "HEIF"}.get(path.suffix.lower())
        picture = photo(("astronaut", "chelsea", "coffee", "retina")[number % 4], 64, 1 + number / 4)
        picture.save(path, kind or {".jfif": "JPEG"}.get(path.suffix.lower()))
        text = (texts / name).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(tags)
    return images, texts


def rejected(output: Path) -> dict[str, str]:
    return {item["name"]: item["reason"] for item in
            map(json.loads, (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines())}


# --- 1: a question that names tags ---

def listed(tmp_path: Path, *questions: str) -> tuple[int, Path]:
    photo("chelsea").save(tmp_path / "1.png")
    (tmp_path / "list.json").write_text(json.dumps(
        [{"image_path": "1.png", "problem": question, "tag": ["cat, eye\n"]} for question in questions]))
    return exit_code(main, ["--json", str(tmp_path / "list.json"), "--output", str(tmp_path / "out"),
                            "--num_proc", "1"]), tmp_path / "out"


def test_a_question_may_name_the_chains_tags(tmp_path):
    questions = [QUESTION, "Write <final_image> at the end.", "Restore it. <|image|>", "</degradation>"]
    code, output = listed(tmp_path, *questions)
    assert code == 0 and load_dataset_dict(output)["train"]["problem"] == questions


@pytest.mark.parametrize(("question", "reason"), [
    (QUESTION + "<|image|>", "2 times <|image|>"), ("<|image|>", "is empty"), (" ", "is empty"),
    ("Restore\x00it", "control character"), ("x" * 3000, "question of 3000 characters")])
def test_a_question_with_two_photos_or_without_words_is_refused(tmp_path, question, reason):
    code, output = listed(tmp_path, "Restore it.", question)
    assert code == 2 and reason in rejected(output)["list.json:1"]


# --- 6: tags divided by other marks ---

@pytest.mark.parametrize("tags", ["cat | whiskers | fur", "cat; whiskers; fur", "cat\nwhiskers\nfur\n",
                                  "cat\twhiskers\tfur", "\ufeffcat,whiskers|fur", "猫、胡须，毛"])
def test_tag_files_are_divided_at_every_separator(tmp_path, tags):
    images, texts = folder_of(tmp_path, ["a.png"], tags)
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 0
    found = load_dataset_dict(tmp_path / "out")["train"]["tag"][0]
    assert found == (["cat", "whiskers", "fur"] if "cat" in tags else ["猫", "胡须", "毛"])


@pytest.mark.parametrize("tag", ["cat | fur", ["cat | fur"], ["cat;fur"], ["cat\n", "fur\n"]])
def test_tags_of_json_lines_are_divided_too(tmp_path, tag):
    images, _ = folder_of(tmp_path, ["a.png"])
    (tmp_path / "tags.jsonl").write_text("\ufeff" + json.dumps({"image": "a.png", "tag": tag}))
    assert make(images, tmp_path / "out", "--tags", str(tmp_path / "tags.jsonl")) == 0
    assert load_dataset_dict(tmp_path / "out")["train"]["tag"][0] == ["cat", "fur"]


@pytest.mark.parametrize("tags", [" | ; ,\n", "cat, <|image|>", "cat; </rough_image>", "a\x07b"])
def test_tags_that_are_none_are_still_refused(tmp_path, tags):
    images, texts = folder_of(tmp_path, ["a.png"], tags)
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 2
    assert "tag file" in rejected(tmp_path / "out")["a.png"]


# --- 8: kinds of files ---

def test_photos_of_every_kind_and_spelling_meet_their_tags(tmp_path):
    names = ["a.avif", "b.JFIF", "c.heic", "d.HEIF", "e.PNG", "f.jpg.png", "g.tar.JPEG", "sub/h.WebP"]
    images, texts = folder_of(tmp_path, names)
    (texts / "a.txt").rename(texts / "a.TXT")
    (texts / "b.txt").rename(texts / "b.JFIF.txt")
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 0
    assert sorted(load_dataset_dict(tmp_path / "out")["train"]["source"]) == sorted(names)


def test_pictures_that_are_not_read_are_listed_with_the_reason(tmp_path):
    images, texts = folder_of(tmp_path, ["good.png"])
    unread = {"raw.CR2": b"II*\0", "drawing.svg": b"<svg/>", "modern.jxl": b"\xff\x0a", "icon.ico": b"\0\0\1\0",
              "photo": (images / "good.png").read_bytes(), "saved.jpg_large": b"\xff\xd8\xff\xe0",
              "phone.part": b"\0\0\0\x18ftypheic\0\0\0\0"}
    for name, data in unread.items():
        (images / name).write_bytes(data)
    for name in ("Thumbs.db", "notes.md", ".DS_Store", "list.csv"):
        (images / name).write_bytes(b"no picture")
    (texts / "raw.txt").write_text("cat")
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 2
    found = rejected(tmp_path / "out")
    assert set(found) == set(unread)
    assert "raw file" in found["raw.CR2"] and "rename it to photo.png" in found["photo"]
    assert "holds a HEIC picture" in found["phone.part"]


def test_a_second_tag_file_of_a_photo_is_listed(tmp_path):
    images, texts = folder_of(tmp_path, ["a.png", "b.png"])
    (texts / "a.TXT").write_text("dog")
    (texts / "b.png.txt").write_text("dog")
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 2
    assert all("stands beside" in reason for reason in rejected(tmp_path / "out").values())
    assert len(rejected(tmp_path / "out")) == 2


# --- 9: macOS ---

def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def png(name: str) -> bytes:
    buffer = io.BytesIO()
    photo(name, 64).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_tar_from_macos_is_read_without_its_shadows(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Café")
    tar_of(tmp_path / "photos.tar", {
        "./._a.png": b"\0\5\26\7", "./a.png": png("coffee"), "./._a.txt": b"\0\5\26\7", "./a.txt": b"cup | spoon",
        "__MACOSX/._a.png": b"\0\5\26\7", ".DS_Store": b"x", f"{decomposed}.png": png("chelsea"),
        "Café.txt": b"\xef\xbb\xbfcat", "b.jpg.png": png("retina"), "b.jpg.png.txt": b"eye"})
    assert make(tmp_path / "photos.tar", tmp_path / "out") == 0
    rows = load_dataset_dict(tmp_path / "out")["train"]
    assert sorted(rows["tag"]) == [["cat"], ["cup", "spoon"], ["eye"]]


def test_decomposed_names_meet_their_tags_in_folders_lines_and_lists(tmp_path):
    nfd, nfc = (unicodedata.normalize(form, "Ärger über Café") for form in ("NFD", "NFC"))
    images, texts = folder_of(tmp_path, [f"{nfd}/{nfd}.png"])
    (texts / nfd).rename(texts / nfc)
    (texts / nfc / f"{nfd}.txt").rename(texts / nfc / f"{nfc}.txt")
    assert make(images, tmp_path / "folder", "--tags", str(texts)) == 0
    line = json.dumps({"image": f"{nfc}/{nfc}.png", "tag": "cat"}, ensure_ascii=False)
    (tmp_path / "tags.jsonl").write_text(line, encoding="utf-8-sig")
    assert make(images, tmp_path / "lines", "--tags", str(tmp_path / "tags.jsonl"), "--test_photos", nfd) == 0
    record = {"image_path": f"{nfc}/{nfc}.png", "problem": "Restore it.", "tag": "cat"}
    (tmp_path / "list.json").write_text(json.dumps([record]), encoding="utf-8-sig")
    assert exit_code(main, ["--json", str(tmp_path / "list.json"), "--images", str(images), "--output",
                            str(tmp_path / "list"), "--num_proc", "1"]) == 0
    assert [len(load_dataset_dict(tmp_path / name)[split]) for name, split in
            (("folder", "train"), ("lines", "test"), ("list", "train"))] == [1, 1, 1]


def test_two_photos_whose_names_differ_in_form_only_are_not_both_taken(tmp_path):
    images, texts = folder_of(tmp_path, ["Caf\xe9.png", "Cafe\u0301.png"])
    (texts / "Cafe\u0301.txt").unlink()
    assert make(images, tmp_path / "out", "--tags", str(texts)) == 2
    assert "has the same name" in next(iter(rejected(tmp_path / "out").values()))


@pytest.mark.parametrize("data", [b"\xff\xfe[\x00", b"[{}", b"caf\xe9", b"\xef\xbb\xbf"])
def test_a_list_that_is_no_json_is_refused_in_one_line(tmp_path, data, capsys):
    (tmp_path / "list.json").write_bytes(data)
    assert exit_code(main, ["--json", str(tmp_path / "list.json"), "--output", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'list.json'} is not" in capsys.readouterr().err
