"""Time and memory of restoring photos of growing size, and their seams. No GPU is needed.

    .venv/bin/python scripts/benchmarks/benchmark_restore.py --photos DIR --megapixels 0.25 1 4
    .venv/bin/python scripts/benchmarks/benchmark_restore.py --photos DIR --seams 8

Prints JSON. For each size: `seconds` and `cpu_seconds` without loading the model, and `gib`, the
most memory of the process that restores (resident, model and Python included), on a square photo
that is scaled to the size. `seams`: for so many photos at 0.06 megapixels, the mean difference of
neighbouring pixels across the borders of tiles, divided by that at as many random places of the
same results.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy
from PIL import Image

from realsr_r1.core.images import list_images, load_image, resize_to_cover

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure each size in a process of its own, or the seams in this one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "assets/tiny"))
    parser.add_argument("--photos", required=True, help="folder of photos")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[])
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--seams", type=int, default=0, metavar="PHOTOS")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)  # the process of one size
    args = parser.parse_args()
    if args.only:
        print(json.dumps(cost(args)))
        return
    found: dict[str, object] = {}
    for size in args.megapixels:
        command = [sys.executable, __file__, "--only", "--model", args.model, "--photos", args.photos,
                   "--megapixels", str(size)]
        command += ["--batch_size", str(args.batch_size)] if args.batch_size else []
        found[f"{size:g} MP"] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    if args.seams:
        found["seams"] = seams(args)
    print(json.dumps(found, indent=1))


def cost(args: argparse.Namespace) -> dict[str, float]:
    """Restore one photo of the size asked for."""
    from realsr_r1 import Restorer

    side = round((args.megapixels[0] * 2**20) ** 0.5)
    photo = resize_to_cover(load_image(list_images(args.photos)[0]), (side, side))
    restorer = Restorer.from_pretrained(args.model, batch_size=args.batch_size)
    started, busy = time.perf_counter(), time.process_time()
    result = restorer.restore(photo)
    return {"seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - busy, 1), "tiles": len(result.tiles),
            "rows at a time": restorer.batches.size,
            "gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


def seams(args: argparse.Namespace) -> float:
    """Return the ratio over all photos."""
    from realsr_r1 import Restorer

    restorer, total = Restorer.from_pretrained(args.model, batch_size=args.batch_size), numpy.zeros(2)
    for place, path in enumerate(list_images(args.photos)[:args.seams]):
        photo = resize_to_cover(load_image(path), (250, 250))
        result = restorer.restore(photo, place=place)
        total += steps(result.final, [box for box, _ in result.tiles])
    return round(float(total[0] / total[1]), 3)


def steps(image: Image.Image, boxes: list[tuple[int, int, int, int]]) -> tuple[float, float]:
    """Return the sum of differences of neighbours across borders of boxes, and at random places."""
    pixels, sums, rng = numpy.asarray(image, dtype=float), numpy.zeros(2), numpy.random.default_rng(0)
    for axis in (0, 1):
        found = abs(numpy.diff(pixels if axis else pixels.transpose(1, 0, 2), axis=1)).mean(2)
        sides = (0, 2) if axis else (1, 3)
        borders = sorted({box[side] for box in boxes for side in sides} - {0, found.shape[1] + 1})
        random = rng.integers(0, found.shape[1], (len(found), len(borders)))
        sums += (found[:, [border - 1 for border in borders]].sum(),
                 numpy.take_along_axis(found, random, axis=1).sum())
    return tuple(sums)


if __name__ == "__main__":
    main()
