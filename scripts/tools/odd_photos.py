"""Restore ten photos as they come: sizes, shapes, kinds of file; check them, and make a sheet.

    python scripts/tools/odd_photos.py --photos DIR --work outputs/odd_photos --output figs/odd_photos.jpg

DIR is what scripts/tools/gather_photos.py wrote; the photos are among those that nothing was trained
on. Each goes through `realsr-r1 restore` at scale 1 and 2, and at 4 if it is under 600 px. Checked
are the size of every result, that it is the right way up, that its channels' means are those of the
input (at most 2 of 255 apart), and that grey stays grey and transparency transparent. A line a
result; exit code 1 where something is wrong. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps

from realsr_r1.core.files import atomic_file
from realsr_r1.core.pictures import read_picture

CELL, TITLE, GAP, WIDTH = 150, 34, 8, 300  # px: height of a picture, of its captions; widest picture
Make = Callable[[Image.Image, Path], None]


def saved(size: tuple[int, int], **settings: object) -> Make:
    """Fit the photo to a size, and save it."""
    return lambda photo, path: ImageOps.fit(photo, size).save(path, **settings)


def grey_16(photo: Image.Image, path: Path) -> None:
    """Save 16 bits a pixel, of which the lower ones are in use, too."""
    grey = numpy.asarray(ImageOps.fit(photo, (150, 112)).convert("F")) * 257 + 77
    Image.fromarray(grey.clip(0, 65535).astype(numpy.uint16)).save(path)


def transparent(photo: Image.Image, path: Path) -> None:
    """Save a photo that is seen through an ellipse."""
    photo = ImageOps.fit(photo, (150, 112))
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((5, 5, 145, 107), fill=255)
    photo.putalpha(mask)
    photo.save(path)


def turned(photo: Image.Image, path: Path) -> None:
    """Save lying on its side, with the EXIF tag that says so."""
    photo = ImageOps.fit(photo, (112, 150))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)


def wide_gamut(photo: Image.Image, path: Path) -> None:
    """Save in Display P3, with its profile."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "core"))
    import icc

    profile = icc.matrix_profile(icc.DISPLAY_P3)
    wide = ImageCms.profileToProfile(ImageOps.fit(photo, (150, 112)), ImageCms.createProfile("sRGB"),
                                     ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    wide.save(path, icc_profile=profile)


# What it is -> (photo, name of the file, how it is made, largest scale)
ODD: dict[str, tuple[str, str, Make, int]] = {
    "portrait": ("baboon", "portrait.png", saved((112, 150)), 4),
    "4000 px wide": ("hotel", "wide.jpg", saved((4000, 96), quality=95), 2),
    "40 x 30": ("fruits", "small.png", saved((40, 30)), 4),
    "16-bit grey PNG": ("leuven", "deep.png", grey_16, 4),
    "grey": ("boats", "grey.png", lambda photo, path: saved((150, 112))(photo.convert("L"), path), 4),
    "alpha": ("swallowtail", "alpha.png", transparent, 4),
    "turned by EXIF": ("redsquirrel", "turned.jpg", turned, 4),
    "wide-gamut profile": ("aloe", "gamut.png", wide_gamut, 4),
    "3:1 panorama": ("palace", "panorama.png", saved((240, 80)), 4),
    "WebP": ("circuit", "web.webp", saved((150, 112), quality=90), 4),
}


def main() -> int:
    """Make, restore, check, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of gather_photos.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and results")
    parser.add_argument("--model", default="assets/tiny")
    parser.add_argument("--output", type=Path, required=True, help="JPEG to write")
    args = parser.parse_args()
    wrong, rows = 0, []
    for title, (name, file, make, largest) in ODD.items():
        source = args.work / "photos" / file
        source.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            with Image.open(args.photos / f"{name}.png") as photo:
                make(photo.convert("RGB"), source)
        rows.append([(title, read_picture(source).image)])
        for scale in (1, 2, 4)[:3 if largest == 4 else 2]:
            folder = args.work / f"x{scale}"
            command = [sys.executable, "-m", "realsr_r1.cli", "restore", "--model", args.model, "--input",
                       source, "--output", folder, "--scale", scale]
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            result = folder / f"{source.stem}.png"
            faults, caption = compared(source, result, scale)
            wrong += bool(faults)
            outcome = "FAIL" if faults else "ok  "
            print(f"{outcome} {title}, x{scale}: {caption} {'; '.join(faults)}", flush=True)
            rows[-1].append((f"x{scale}: {caption}", read_picture(result).image))
    with atomic_file(args.output) as partial:
        drawn(rows).save(partial, format="JPEG", quality=88)
    return min(wrong, 1)


def compared(source: Path, result: Path, scale: int) -> tuple[list[str], str]:
    """Return what is wrong with a result, and a caption."""
    before, after = read_picture(source), read_picture(result)
    asked = tuple(side * scale for side in before.image.size)
    means = [numpy.asarray(picture.image, float).mean((0, 1)) for picture in (before, after)]
    apart = abs(means[0] - means[1]).max()
    small = [numpy.asarray(picture.image.convert("L").resize((12, 12), Image.Resampling.BOX), float)
             for picture in (before, after)]
    faults = [fault for fault, is_one in {
        f"{after.image.size} px in place of {asked}": after.image.size != asked,
        f"a channel's mean is {apart:.1f} apart": apart > 2,
        "not the right way up": numpy.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] < 0.9,
        "grey or not": before.is_grey != after.is_grey,
        "transparent or not": (before.alpha is None) != (after.alpha is None),
    }.items() if is_one]
    return faults, f"{after.image.width} x {after.image.height}, means {apart:.1f} apart"


def drawn(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """A row a photo: as it came, then each result, captions above."""
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (4 * (WIDTH + GAP), len(rows) * (CELL + TITLE + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, cells in enumerate(rows):
        top = row * (CELL + TITLE + GAP)
        for column, (caption, picture) in enumerate(cells):
            share = min(WIDTH / picture.width, CELL / picture.height)
            size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
            shown = picture.resize(size, Image.Resampling.LANCZOS)
            draw.text((column * (WIDTH + GAP) + 2, top + 10), caption, fill="black", font=font)
            sheet.paste(shown, (column * (WIDTH + GAP), top + TITLE))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
