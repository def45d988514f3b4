"""realsr-r1 restore: photos in, restored photos and their chains out; bad photos named, the others
done.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from realsr_r1.chain.text import parse_chain
from realsr_r1.restore import BAD_ITEMS_FILE, main
from realsr_r1.restoring.colors import fix_colors, wavelet_levels

from .small import exit_code, photo, write_model

NAMES = ("astronaut", "chelsea", "coffee", "retina")


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Four photos: two square ones, a wide one and a tall one."""
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(NAMES):
        photo(name, 64).resize([(40, 40), (64, 30), (33, 33), (30, 70)][index]).save(folder / f"{name}.png")
    return folder


def restore(model: Path, source: Path, output: Path, *more: str) -> int:
    folders = ["--model", str(model), "--input", str(source), "--output", str(output)]
    return exit_code(main, [*folders, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def restored(model, photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("output") / "restored"
    assert restore(model, photos, output) == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def result(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.png").read_bytes()


def test_a_folder_gives_a_png_and_a_chain_for_every_photo(restored):
    parts = ("chain.json", "chain.txt", "final.png", "lq.png", "made_with.json", "middle.png", "rough.png",
             "tiles.json")
    assert sorted(contents(restored)) == sorted([f"{name}.png" for name in NAMES]
                                                + [f"chains/{name}/{part}" for name in NAMES
                                                   for part in parts])


def test_a_photo_comes_back_in_its_own_size_and_its_chains_images_grow_to_it(restored):
    halves = [(20, 20), (32, 16), (17, 17), (16, 35)]  # a tile's rough and middle image have 16 of its 32 px
    for name, size, half in zip(NAMES, [(40, 40), (64, 30), (33, 33), (30, 70)], halves, strict=True):
        folder = restored / "chains" / name
        text = (folder / "chain.txt").read_text(encoding="utf-8")
        assert parse_chain(text).is_well_formed
        images = {part: Image.open(folder / f"{part}.png") for part in ("lq", "rough", "middle", "final")}
        assert images["lq"].size == images["final"].size == size
        assert images["rough"].size == images["middle"].size
        assert all(abs(side - wanted) <= 1 for side, wanted in zip(images["rough"].size, half, strict=True))
        image = Image.open(restored / f"{name}.png")
        assert image.mode == "RGB" and ImageChops.difference(image, images["final"]).getbbox() is None


def test_tiles_say_where_they_are_and_what_was_written_for_them(restored):
    for name, count in zip(NAMES, (4, 3, 4, 3), strict=True):
        folder = restored / "chains" / name
        tiles = json.loads((folder / "tiles.json").read_text(encoding="utf-8"))
        assert len(tiles) == count and tiles[0]["box"] == [0, 0, 32, 32]
        assert {tile["text"] + "\n" for tile in tiles} == {(folder / "chain.txt").read_text(encoding="utf-8")}


@pytest.mark.parametrize(("scale", "sizes"), [("2", [(80, 80), (128, 60), (66, 66), (60, 140)]),
                                              ("0.5", [(20, 20), (32, 15), (16, 16), (15, 35)])])
def test_the_scale_gives_exactly_that_size(model, photos, tmp_path, capsys, scale, sizes):
    assert restore(model, photos, tmp_path, "--scale", scale) == 0
    assert [Image.open(tmp_path / f"{name}.png").size for name in NAMES] == sizes
    pixels = sum(width * height for width, height in sizes)
    assert f": 4 photos, {pixels / 1e6:.2f} megapixels, " in capsys.readouterr().out.splitlines()[-1]


def test_one_photo_can_be_given_as_a_file(model, photos, restored, tmp_path):
    assert restore(model, photos / "astronaut.png", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["astronaut.png", "chains"]
    assert result(tmp_path, "astronaut") == result(restored, "astronaut")  # the first of the folder


def test_the_same_seed_gives_the_same_photos_whatever_the_batches(model, photos, restored, tmp_path):
    assert restore(model, photos, tmp_path / "one_by_one", "--batch_size", "1") == 0
    assert contents(tmp_path / "one_by_one") == contents(restored)
    assert restore(model, photos, tmp_path / "other", "--seed", "7") == 0
    assert all(result(tmp_path / "other", name) != result(restored, name) for name in NAMES)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_a_policy_of_few_bits_restores_photos(model, photos, tmp_path, bits):
    assert restore(model, photos / "retina.png", tmp_path / "out", f"--load_in_{bits}bit") == 0
    assert Image.open(tmp_path / "out" / "retina.png").size == (30, 70)


def test_jacobi_takes_fewer_forward_passes_and_says_how_many(model, photos, tmp_path, capsys):
    for name, size in (("once", "4"), ("again", "3")):
        assert restore(model, photos, tmp_path / name, "--jacobi", "8", "--batch_size", size) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.endswith(" forward passes a token (jacobi 8)") and 1 / 8 < float(line.split()[0]) < 1
    assert contents(tmp_path / "once") == contents(tmp_path / "again")


def test_a_run_that_is_started_again_does_the_rest_and_gives_the_same(model, photos, restored, tmp_path,
                                                                      capsys):
    output = tmp_path / "restored"
    shutil.copytree(restored, output)
    for name in ("astronaut", "coffee"):
        (output / f"{name}.png").unlink()
    kept = (output / "chelsea.png").stat().st_mtime_ns
    assert restore(model, photos, output) == 0
    assert "2 of 4 photos are restored" in capsys.readouterr().out
    assert contents(output) == contents(restored)
    assert (output / "chelsea.png").stat().st_mtime_ns == kept


def test_a_photo_that_was_replaced_is_restored_again_and_a_copied_one_is_not(model, photos, restored,
                                                                             tmp_path, capsys):
    source, output = shutil.copytree(photos, tmp_path / "photos"), shutil.copytree(restored, tmp_path / "out")
    for name in NAMES:
        (source / f"{name}.png").touch()  # as a copy without its times
    assert restore(model, source, output) == 0
    assert "4 of 4 photos are restored" in capsys.readouterr().out
    times = (source / "coffee.png").stat()
    photo("retina", 33).save(source / "coffee.png")
    os.utime(source / "coffee.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert restore(model, source, output) == 0
    assert "1 of 4 photos were changed since they were restored" in capsys.readouterr().out
    assert restore(model, source, tmp_path / "anew") == 0
    assert contents(output) == contents(tmp_path / "anew")
    assert result(output, "coffee") != result(restored, "coffee")


def test_results_that_do_not_say_what_they_were_made_from_are_told_apart(model, photos, restored, tmp_path,
                                                                         capsys):
    output = shutil.copytree(restored, tmp_path / "out")
    record = output / "chains" / "coffee" / "made_with.json"
    held = json.loads(record.read_text())
    del held["photo"]  # as older versions wrote it
    record.write_text(json.dumps(held))
    (output / "chains" / "chelsea" / "made_with.json").unlink()
    (output / "chelsea.png").write_bytes(b"somebody's own")
    assert restore(model, photos, output) == 0
    said = capsys.readouterr().out
    assert "1 of 4 photos were restored in" in said and "by an older version" in said
    assert "1 of 4 photos have a result in" in said and "without a record" in said
    assert json.loads(record.read_text())["photo"] and result(output, "coffee") == result(restored, "coffee")
    assert result(output, "chelsea") == b"somebody's own"


def test_photos_of_another_model_or_of_other_flags_are_not_taken_for_done(model, tiny_model, photos, restored,
                                                                          tmp_path, capsys):
    before = contents(restored)
    other_model = write_model(tmp_path / "other", tiny_model, seed=1)
    for other, *flags in ((other_model,), (model, "--seed", "7"), (model, "--grammar", "image"),
                          (model, "--scale", "2"), (model, "--format", "jpg")):
        assert restore(other, photos, restored, *flags) == 2
        assert "astronaut.png was restored by another model or with other flags" in capsys.readouterr().err
    assert contents(restored) == before


def test_what_else_lies_in_the_models_folder_makes_it_no_other_model(model, photos, tmp_path, capsys):
    inside = shutil.copytree(model, tmp_path / "model")
    assert restore(inside, photos, inside / "restored") == 0
    (inside / "report").mkdir()
    (inside / "report" / "report.html").write_text("a page")
    (inside / "log_history.jsonl").write_text("{}")
    assert restore(inside, photos, inside / "restored") == 0
    assert "are restored in" in capsys.readouterr().out


def test_a_stretching_model_gives_a_photo_back_in_its_shape(model, photos, tmp_path):
    stretching = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((stretching / "chain_settings.json").read_text())
    (stretching / "chain_settings.json").write_text(json.dumps({**settings, "fit": "stretch"}))
    assert restore(stretching, photos, tmp_path / "out", "--scale", "0.5") == 0
    sizes = [Image.open(tmp_path / "out" / f"{name}.png").size for name in NAMES]
    assert sizes == [(20, 20), (32, 15), (16, 16), (15, 35)]
    assert [Image.open(tmp_path / "out" / "chains" / name / "final.png").size for name in NAMES[:3]] \
        == [(32, 32)] * 3


def test_color_fix_and_fidelity_are_the_folders_or_the_flags(model, photos, restored, tmp_path):
    fixing = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((fixing / "chain_settings.json").read_text())
    (fixing / "chain_settings.json").write_text(json.dumps({**settings, "color_fix": "wavelet",
                                                                  "fidelity": 0.5}))
    assert restore(fixing, photos, tmp_path / "folder") == 0
    assert restore(model, photos, tmp_path / "flag", "--color_fix", "wavelet", "--fidelity", "0.5") == 0
    assert restore(fixing, photos, tmp_path / "none", "--color_fix", "none") == 0
    for name in NAMES:
        chain = tmp_path / "folder" / "chains" / name
        assert contents(chain)["final.png"] == contents(restored / "chains" / name)["final.png"]
        fixed = fix_colors(Image.open(chain / "final.png"), Image.open(chain / "lq.png"), "wavelet",
                           wavelet_levels(32))
        mixed = Image.blend(fixed, Image.open(chain / "lq.png"), 0.5)
        assert Image.open(tmp_path / "folder" / f"{name}.png").tobytes() == mixed.tobytes()
        assert result(tmp_path / "flag", name) == result(tmp_path / "folder", name)
        assert result(tmp_path / "none", name) == result(restored, name)


def test_corrupt_photos_are_named_and_the_others_done(model, photos, restored, tmp_path, capsys):
    source, output = tmp_path / "photos", tmp_path / "restored"
    shutil.copytree(photos, source)
    (source / "chelsea.png").write_bytes(b"not an image")
    (source / "zero.jpg").write_bytes(b"")
    assert restore(model, source, output) == 2
    error = capsys.readouterr().err
    assert "2 of 5 photos were not restored" in error and str(source / "chelsea.png") in error
    listed = (output / BAD_ITEMS_FILE).read_text(encoding="utf-8")
    bad = [str(source / name) for name in ("chelsea.png", "zero.jpg")]
    assert [line.split("\t")[0] for line in listed.splitlines()] == bad
    assert "zero.jpg is empty (0 bytes)" in listed
    for name in ("astronaut", "coffee", "retina"):  # as they are without a corrupt neighbour
        assert result(output, name) == result(restored, name)
    assert not list(output.rglob("*chelsea*")) + list(output.rglob("*zero*"))
    assert restore(model, source, output, "--skip_bad") == 0
    shutil.copy(photos / "chelsea.png", source)
    (source / "zero.jpg").unlink()
    assert restore(model, source, output) == 0
    assert contents(output) == contents(restored)


def test_an_answer_without_an_image_is_a_bad_item(model, photos, tmp_path, capsys):
    argv = ["--grammar", "image", "--max_new_tokens", "4"]  # no image fits
    assert restore(model, photos / "coffee.png", tmp_path / "out", *argv) == 2
    said = (f"the policy wrote no image for {photos / 'coffee.png'} in 4 tokens; "
            "try another --seed, a larger --max_new_tokens")
    assert said in capsys.readouterr().err


def test_bad_input_is_named_and_nothing_written(model, photos, tmp_path, capsys):
    empty, twice = tmp_path / "empty", tmp_path / "twice"
    for folder in (empty, twice):
        folder.mkdir()
    for suffix in ("png", "jpg"):
        photo("coffee").save(twice / f"a.{suffix}")
    for argv, named in (
            ((model, tmp_path / "nowhere"), f"no such file or folder: {tmp_path / 'nowhere'}"),
            ((model, empty), f"{empty} (--input) holds no images"),
            ((model, twice), f"{twice / 'a.png'} and {twice / 'a.jpg'} would both become a.png"),
            ((tmp_path / "nowhere", photos), f"no such model folder: {tmp_path / 'nowhere'}"),
            ((empty, photos), f"{empty} has no chain_settings.json"),
            ((model, photos, "--batch_size", "0"), "--batch_size"),
            ((model, photos, "--scale", "0"), "--scale 0.0 must be a number above 0"),
            ((model, photos, "--tile", "40"), "--tile 40 must be a multiple of this model's grid unit"),
            ((model, photos, "--pick", "ssim"), "--pick ssim compares with the original photo"),
            ((model, photos, "--temperature", "0"), "temperature"),
            ((model, photos, "--jacobi", "-2"), "jacobi is -2"),
            ((model, photos, "--max_new_tokens", "20"), "20")):
        assert restore(*argv[:2], tmp_path / "out", *argv[2:]) == 2, named
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_photos_own_folder_is_no_output(model, photos, capsys):
    before = contents(photos)
    for source in (photos, photos / "coffee.png"):
        assert restore(model, source, photos) == 2
        assert f"--output {photos} is the folder of the photos themselves" in capsys.readouterr().err
    assert contents(photos) == before


def test_the_embedded_model_restores_a_photo_with_its_defaults(tiny_model, tmp_path):
    photo("coffee", 100).save(tmp_path / "coffee.jpg")
    shutil.copytree(tiny_model, tmp_path / "copy")
    assert restore(tmp_path / "copy", tmp_path / "coffee.jpg", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "coffee.png").size == (100, 100)
    text = (tmp_path / "out" / "chains" / "coffee" / "chain.txt").read_text(encoding="utf-8")
    assert parse_chain(text).is_well_formed
