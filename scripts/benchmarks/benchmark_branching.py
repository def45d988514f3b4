"""What a pass buys: scores of first samples, best-of-N and branching, and what each computes.

    .venv/bin/python scripts/benchmarks/benchmark_branching.py --model assets/tiny --photos DIR

Crops of the model's size are restored once in each way, all with the same noise, so differences are
taken crop by crop. Passes are row-passes: the rows of every forward pass after the prompts'.
Prints a table for each judge.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from realsr_r1 import Restorer
from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.images import list_images, load_image
from realsr_r1.restoring import Photo
from realsr_r1.restoring.options import RestoreOptions

BEST_OF = 4  # what the others are set beside


def main(argv: list[str] | None = None) -> None:
    """Restore the crops in each way; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--photos", required=True, help="folder of degraded photos")
    parser.add_argument("--crops", type=int, default=60)
    parser.add_argument("--pick", nargs="+", default=["piqe", "agreement"], help="judges")
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 2, 3, BEST_OF], help="N of best-of-N")
    parser.add_argument("--branch", nargs="+", default=["4,2,1", "8,4,1"], help="numbers for --branch")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--image_top_k_max", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the crops and of the noise")
    parser.add_argument("--device", default=pick_device())
    args = parser.parse_args(argv)
    if BEST_OF not in args.samples:
        raise UserError(f"--samples must have {BEST_OF}, which the others are set beside")
    restorer = Restorer.from_pretrained(
        args.model, args.device, temperature=args.temperature, image_top_k_max=args.image_top_k_max,
        seed=args.seed)
    photos = list(crops(Path(args.photos), args.crops, restorer.processor.settings.target_px, args.seed))
    for pick in args.pick:
        ways = {f"best of {count}" if count > 1 else "first sample": {"num_samples": count}
                for count in args.samples}
        ways |= {f"branch {numbers}": {"branch": [int(number) for number in numbers.split(",")]}
                 for numbers in args.branch}
        table(pick, {name: scores(restorer, photos, pick, way) for name, way in ways.items()})


def crops(folder: Path, count: int, px: int, seed: int) -> Iterator[Photo]:
    """Cut `count` squares of `px`, from each photo in turn, at random places."""
    numbers, paths = random.Random(seed), list_images(folder)
    for place in range(count):
        image: Image.Image = load_image(paths[place % len(paths)])
        left, top = (numbers.randrange(side - px + 1) for side in image.size)
        yield Photo(image.crop((left, top, left + px, top + px)), place)


def scores(restorer: Restorer, photos: Sequence[Photo], pick: str,
           way: dict[str, object]) -> tuple[list[float], int]:
    """Return the score of each photo's result, and the row-passes of all."""
    before = restorer.writer.row_passes
    found = {photo.place: result.scores[pick]
             for photo, result in restorer.restore_all(photos, RestoreOptions(pick=pick, **way))}
    return [found[photo.place] for photo in photos], restorer.writer.row_passes - before


def table(pick: str, results: dict[str, tuple[list[float], int]]) -> None:
    """Print the mean score and the passes of each way, and both beside best-of-4's."""
    beside, most = results[f"best of {BEST_OF}"]
    print(f"\n| judge {pick} | score | beside best of {BEST_OF} (95 %) | row-passes a crop | share |\n"
          "|---|---|---|---|---|")
    for name, (values, passes) in results.items():
        differences = [value - other for value, other in zip(values, beside, strict=True)]
        gain, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        print(f"| {name} | {statistics.fmean(values):.4f} | {gain:+.4f} ± {1.96 * error:.4f} "
              f"| {passes / len(values):.0f} | {passes / most:.2f} |")


if __name__ == "__main__":
    run(main)
