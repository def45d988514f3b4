"""realsr-r1 restore takes pictures as they come and gives them back so: size, turn, grey, alpha."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from realsr_r1.core.color_profiles import srgb_profile
from realsr_r1.restore import main

from .small import exit_code, photo, write_model


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real photos in every form that people have, none larger than a few tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    photo("chelsea", 60).save(folder / "plain.webp", quality=95)
    grey = photo("astronaut", 48).convert("L")
    grey.save(folder / "grey.png")
    Image.fromarray(numpy.asarray(grey).astype(numpy.uint16) * 257).save(folder / "deep.png")
    turned = photo("coffee", 64).crop((0, 0, 60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    clear = photo("retina", 40).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((40, 40)))
    clear.save(folder / "clear.png")
    photo("rocket", 90).resize((90, 30)).save(folder / "panorama 3:1 \u00e4.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


SIZES = {"plain": (60, 60), "grey": (48, 48), "deep": (48, 48), "turned": (40, 60), "clear": (40, 40),
         "panorama 3:1 \u00e4": (90, 30)}


def restore(model: Path, source: Path, output: Path, *more: str) -> int:
    return exit_code(main, ["--model", str(model), "--input", str(source), "--output", str(output),
                            "--device", "cpu", "--color_fix", "wavelet", *more])


def means(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image.convert("RGB"), dtype=float).mean((0, 1))


@pytest.mark.parametrize("scale", [1, 2])
def test_each_picture_comes_back_in_its_own_form(model, pictures, tmp_path, scale):
    assert restore(model, pictures, tmp_path / "out", "--scale", str(scale)) == 0
    found = {path.stem: Image.open(path) for path in (tmp_path / "out").glob("*.png")}
    assert {name: image.size for name, image in found.items()} == {
        name: (width * scale, height * scale) for name, (width, height) in SIZES.items()}
    assert {name for name, image in found.items() if image.mode == "L"} == {"grey", "deep"}
    assert found["clear"].mode == "RGBA"
    alpha = numpy.asarray(found["clear"].getchannel("A"), dtype=float)
    assert alpha[0].max() < 8 and alpha[-1].min() > 247
    upright = Image.open(pictures / "turned.jpg").transpose(Image.Transpose.ROTATE_270)
    assert abs(means(found["turned"]) - means(upright)).max() <= 2
    assert abs(means(found["deep"]) - means(found["grey"])).max() <= 1
    for name in ("plain", "turned"):
        assert found[name].info["icc_profile"] == srgb_profile()


def test_the_format_and_its_quality_can_be_chosen(model, pictures, tmp_path, capsys):
    clear = str(pictures / "clear.png")
    assert restore(model, clear, tmp_path / "jpg", "--format", "jpg", "--quality", "80") == 0
    assert "transparency" in "".join(capsys.readouterr())
    assert Image.open(tmp_path / "jpg" / "clear.jpg").mode == "RGB"
    assert restore(model, clear, tmp_path / "webp", "--format", "webp") == 0
    assert Image.open(tmp_path / "webp" / "clear.webp").mode == "RGBA"
    assert restore(model, clear, tmp_path / "png", "--quality", "80") == 2
    assert "quality" in capsys.readouterr().err


def test_a_restored_picture_is_left_alone_in_its_format(model, pictures, tmp_path):
    clear, output = str(pictures / "clear.png"), tmp_path / "out"
    assert restore(model, clear, output, "--format", "webp") == 0
    before = (output / "clear.webp").stat().st_mtime_ns
    assert restore(model, clear, output, "--format", "webp") == 0
    assert (output / "clear.webp").stat().st_mtime_ns == before
    assert restore(model, clear, output, "--format", "webp", "--quality", "50") == 2
