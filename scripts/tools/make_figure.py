"""Make the README's strip from restored photos:

LQ, the chain's images, HQ; a row a photo, evenly spaced by name.

python scripts/tools/make_figure.py --restored DIR --gt DIR --output figs/strip.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file
from realsr_r1.core.images import list_images, load_image

SIDE, GAP, HEADER, ROWS = 128, 4, 16, 6  # px, and photos shown


def main(argv: list[str] | None = None) -> None:
    """Pick photos, paste the grid, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--restored", required=True, help="folder that realsr-r1 restore wrote")
    parser.add_argument("--gt", required=True, help="folder of the HQ photos")
    parser.add_argument("--output", required=True, help="PNG to write")
    args = parser.parse_args(argv)
    chains = Path(args.restored) / "chains"
    names = [path.stem for path in list_images(args.restored) if (chains / path.stem).is_dir()]
    if not names:
        raise UserError(f"{args.restored} (--restored) holds no restored photos with their chains")
    names = names[::max(1, len(names) // ROWS)][:ROWS]
    file = chains / names[0] / CHAIN_FILE  # one model restored them all
    spec = ChainSpec.from_yaml(file) if file.is_file() else ChainSpec.published()
    columns = ("lq", *spec.labels)
    sheet = Image.new("RGB", ((len(columns) + 1) * (SIDE + GAP), HEADER + len(names) * (SIDE + GAP)), "white")
    for column, title in enumerate((*columns, "HQ")):
        ImageDraw.Draw(sheet).text((column * (SIDE + GAP) + 2, 2), title.upper() if title == "lq" else title,
                                   fill="black")
    for row, name in enumerate(names):
        images = [load_image(chains / name / f"{column}.png")
                  for column in columns] + [load_image(Path(args.gt) / f"{name}.png")]
        for column, image in enumerate(images):
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC),
                        (column * (SIDE + GAP), HEADER + row * (SIDE + GAP)))
    with atomic_file(args.output) as partial:
        sheet.save(partial, format="PNG")


if __name__ == "__main__":
    run(main)
