"""Make a figure of restored photos: the chains of small ones, or whole ones before and after.

python scripts/tools/make_figure.py --restored DIR --gt DIR --output figs/strip.png
python scripts/tools/make_figure.py --whole --restored DIR --lq DIR --gt DIR --output figs/restored.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file
from realsr_r1.core.images import list_images, load_image

SIDE, GAP, HEADER, ROWS = 128, 4, 16, 6  # px, and photos shown
WIDTH, WIDE_GAP, TITLE = 384, 8, 28  # px, of whole photos


def main(argv: list[str] | None = None) -> None:
    """Pick photos, paste the grid, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--restored", required=True, help="folder that realsr-r1 restore wrote")
    parser.add_argument("--gt", required=True, help="folder of the HQ photos")
    parser.add_argument("--whole", action="store_true",
                        help="degraded, restored and original photo beside each other, instead of chains")
    parser.add_argument("--lq", help="with --whole: folder of the degraded photos")
    parser.add_argument("--names", help="with --whole: which photos, separated by commas (default: all)")
    parser.add_argument("--output", required=True, help="PNG or .jpg to write")
    args = parser.parse_args(argv)
    if args.whole != (args.lq is not None):
        raise UserError("--whole and --lq go together")
    sheet = whole_photos(args) if args.whole else chains(args)
    with atomic_file(args.output) as partial:
        sheet.save(partial, format="JPEG" if Path(args.output).suffix == ".jpg" else "PNG", quality=90)


def chains(args: argparse.Namespace) -> Image.Image:
    """LQ, the chain's images, HQ: a row a photo, evenly spaced by name."""
    folder = Path(args.restored) / "chains"
    names = [path.stem for path in list_images(args.restored) if (folder / path.stem).is_dir()]
    if not names:
        raise UserError(f"{args.restored} (--restored) holds no restored photos with their chains")
    names = names[::max(1, len(names) // ROWS)][:ROWS]
    file = folder / names[0] / CHAIN_FILE  # one model restored them all
    spec = ChainSpec.from_yaml(file) if file.is_file() else ChainSpec.published()
    columns = ("lq", *spec.labels)
    sheet = Image.new("RGB", ((len(columns) + 1) * (SIDE + GAP), HEADER + len(names) * (SIDE + GAP)), "white")
    for column, title in enumerate((*columns, "HQ")):
        ImageDraw.Draw(sheet).text((column * (SIDE + GAP) + 2, 2), title.upper() if title == "lq" else title,
                                   fill="black")
    for row, name in enumerate(names):
        images = [load_image(folder / name / f"{column}.png")
                  for column in columns] + [load_image(Path(args.gt) / f"{name}.png")]
        for column, image in enumerate(images):
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC),
                        (column * (SIDE + GAP), HEADER + row * (SIDE + GAP)))
    return sheet


def whole_photos(args: argparse.Namespace) -> Image.Image:
    """Degraded, restored and original photos, a row each, all `WIDTH` px wide."""
    columns = {"degraded": args.lq, "restored": args.restored, "original": args.gt}
    found = {title: {path.stem: path for path in list_images(folder)} for title, folder in columns.items()}
    names = args.names.split(",") if args.names else sorted(found["restored"])
    for title, folder in columns.items():
        missing = [name for name in names if name not in found[title]]
        if missing:
            raise UserError(f"{folder} has no photo {', '.join(missing)}")
    rows = [[load_image(found[title][name]) for title in columns] for name in names]
    heights = [round(WIDTH * row[-1].height / row[-1].width) for row in rows]
    sheet = Image.new("RGB", (3 * WIDTH + 2 * WIDE_GAP, TITLE + sum(heights) + WIDE_GAP * (len(rows) - 1)),
                      "white")
    for column, title in enumerate(columns):
        ImageDraw.Draw(sheet).text((column * (WIDTH + WIDE_GAP) + 2, 4), title, fill="black",
                                   font=ImageFont.load_default(16))
    top = TITLE
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image.resize((WIDTH, height), Image.Resampling.BICUBIC),
                        (column * (WIDTH + WIDE_GAP), top))
        top += height + WIDE_GAP
    return sheet


if __name__ == "__main__":
    run(main)
