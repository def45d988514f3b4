"""Degrade whole photos: OUTPUT/lq/NAME.png and OUTPUT/hq/NAME.png, and labels.json with what was done.

For `realsr-r1 restore --input OUTPUT/lq` and `realsr-r1 evaluate --gt OUTPUT/hq --lq OUTPUT/lq`.

python scripts/tools/degrade_photos.py --photos DIR --names coffee,rocket --degradation FILE.yaml --output DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_folder, write_json
from realsr_r1.core.images import list_images, load_image
from realsr_r1.data.degradation.config import DegradationConfig
from realsr_r1.data.degradation.degrade import degrade


def main(argv: list[str] | None = None) -> None:
    """Read photos, degrade them at their own size, write both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", required=True, help="folder of photos")
    parser.add_argument("--names", help="names without suffix, separated by commas (default: all)")
    parser.add_argument("--degradation", required=True, help="YAML file, see configs/degradation")
    parser.add_argument("--longest_side", type=int, default=512,
                        help="larger photos are scaled down to it first, in px (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the degradations (default: 0)")
    parser.add_argument("--output", required=True, help="folder to make")
    args = parser.parse_args(argv)
    if Path(args.output).is_dir():
        print(f"{args.output} is there already; nothing to do")
        return
    if not Path(args.photos).is_dir():
        raise UserError(f"no such folder: {args.photos} (given by --photos)")
    found = {path.stem: path for path in list_images(args.photos)}
    names = args.names.split(",") if args.names else sorted(found)
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise UserError(f"{args.photos} (--photos) has no photo {', '.join(missing)}".rstrip())
    config, labels = DegradationConfig.from_yaml(args.degradation), {}
    with atomic_folder(args.output) as folder:
        for kind in ("lq", "hq"):
            (folder / kind).mkdir()
        for name in names:
            photo = load_image(found[name])
            photo.thumbnail((args.longest_side, args.longest_side), Image.Resampling.BOX)
            degraded = degrade(photo, args.seed, name, config)
            photo.save(folder / "hq" / f"{name}.png")
            degraded.image.save(folder / "lq" / f"{name}.png")
            labels[name] = degraded.labels
        write_json(folder / "labels.json", labels)
    print(f"{args.output}: {len(names)} photos")


if __name__ == "__main__":
    run(main)
