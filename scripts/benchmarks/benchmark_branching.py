"""What a pass buys: scores of first samples, best-of-N and branching, and what each computes.

    .venv/bin/python scripts/benchmarks/benchmark_branching.py --model assets/tiny --photos DIR

Writes the samples of each crop once and plays every way on them: a candidate that goes on is what it
is without its rivals (tests/rollout/test_choosing.py), and one that loses has taken a pass for each
token up to the place where the last of its rivals closed the image. Passes are row-passes: the rows
of every forward pass after the prompts'. Crops are of the model's size, and whole chains are
written. Prints a table for each judge.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from realsr_r1 import Restorer
from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.images import list_images, load_image, scale_to
from realsr_r1.restoring.picking import Judge, best_of, make_judge
from realsr_r1.restoring.writing import row_number
from realsr_r1.rollout import RolloutEngine

BEST_OF = 4  # what the others are set beside
BRANCHES = ["4,2,1", "4,4,1", "6,3,1", "5,3,2", "4,4,2", "8,4,1", "6,4,2"]
CROPS_AT_ONCE = 5


@dataclasses.dataclass(frozen=True)
class Sample:
    """`ends`: tokens up to the end of each image but the last, and of the chain. `scores`: of each
    image, by judge.
    """

    ends: list[int]
    scores: dict[str, list[float]]


def main(argv: list[str] | None = None) -> None:
    """Write the samples, play every way, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--photos", required=True, help="folder of degraded photos")
    parser.add_argument("--crops", type=int, default=60)
    parser.add_argument("--pick", nargs="+", default=["agreement", "piqe"], help="judges")
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 2, BEST_OF, 8], help="N of best-of-N")
    parser.add_argument("--branch", nargs="+", default=BRANCHES, help="numbers for --branch")
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
    images = len(restorer.processor.chain.images)
    ways = {f"best of {count}" if count > 1 else "first sample": [count] * images for count in args.samples}
    ways |= {f"branch {numbers}": [int(number) for number in numbers.split(",")] for numbers in args.branch}
    px = restorer.processor.settings.target_px
    samples = list(written(restorer, list(crops(Path(args.photos), args.crops, px, args.seed)),
                           max(way[0] for way in ways.values()),
                           {pick: make_judge(pick, args.device) for pick in args.pick}))
    for pick in args.pick:
        table(pick, {name: [play(each, way, pick) for each in samples] for name, way in ways.items()})


def crops(folder: Path, count: int, px: int, seed: int) -> Iterator[Image.Image]:
    """Cut `count` squares of `px`, from each photo in turn, at random places."""
    numbers, paths = random.Random(seed), list_images(folder)
    for place in range(count):
        image = load_image(paths[place % len(paths)])
        left, top = (numbers.randrange(side - px + 1) for side in image.size)
        yield image.crop((left, top, left + px, top + px))


def written(restorer: Restorer, views: Sequence[Image.Image], count: int,
            judges: dict[str, Judge]) -> Iterator[list[Sample]]:
    """Write `count` samples of each view, and score all their images as branching does."""
    config = dataclasses.replace(restorer.engine.config, num_generations=count)
    engine = RolloutEngine(restorer.engine.policy, restorer.engine.layout, config)
    for start in range(0, len(views), CROPS_AT_ONCE):
        part = views[start:start + CROPS_AT_ONCE]
        prompts = [restorer.writer.prompt(view) for view in part]
        rows = [row_number(start + place, sample=sample) for place in range(len(part))
                for sample in range(count)]
        completions = engine.generate(prompts, rows=rows).completion_ids
        for place, view in enumerate(part):
            samples = []
            for ids in completions[place * count:(place + 1) * count]:
                [images] = restorer.processor.decode_images([ids])
                scores = {pick: [judge([image], scale_to(view, image.size))[0] for image in images]
                          for pick, judge in judges.items()}
                ends = [span.stop for span in engine.layout.find_spans(ids)[:-1]]
                samples.append(Sample([*ends, len(ids)], scores))
            yield samples


def play(samples: Sequence[Sample], candidates: Sequence[int], pick: str) -> tuple[float, int]:
    """Return the score of the candidate that `pick` chooses, and the passes of all."""
    left, passes = list(range(candidates[0])), 0
    for image, count in enumerate([*candidates[1:], 1]):
        best = [left[place] for place in best_of([samples[row].scores[pick][image] for row in left], count)]
        last = max(samples[row].ends[image] for row in left)
        losers = set(left) - set(best)
        # The prompt's pass gives every candidate its first token.
        passes += sum(min(last, samples[row].ends[-1]) - 1 for row in losers)
        left = sorted(best)
    return samples[left[0]].scores[pick][-1], passes + samples[left[0]].ends[-1] - 1


def table(pick: str, results: dict[str, list[tuple[float, int]]]) -> None:
    """Print the mean score and the passes of each way, and both beside best-of-4's."""
    beside = results[f"best of {BEST_OF}"]
    most = statistics.fmean(passes for _, passes in beside)
    print(f"\n| judge {pick} | score | beside best of {BEST_OF} (95 %) | row-passes a crop | share |\n"
          "|---|---|---|---|---|")
    for name, found in results.items():
        differences = [score - other for (score, _), (other, _) in zip(found, beside, strict=True)]
        gain, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        score, passes = (statistics.fmean(values) for values in zip(*found, strict=True))
        print(f"| {name} | {score:.4f} | {gain:+.4f} ± {1.96 * error:.4f} | {passes:.0f} "
              f"| {passes / most:.2f} |")


if __name__ == "__main__":
    run(main)
