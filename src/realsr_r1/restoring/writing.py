"""Lets the policy write: pictures of the policy's sizes in, answers with their images out.

Knows rows: their prompts, their given words, their numbers, their samples. What a picture is a part
of, and how parts come together, it leaves to `realsr_r1.restoring.restorer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from realsr_r1.restoring.picking import Judge, best_of
from realsr_r1.rollout import RolloutEngine

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.restoring.batches import Batches

# A row's number says which random numbers it draws. It is made of the photo's place among the
# photos, the tile's place in the photo and the number of the sample, so that a tile is the same
# whatever is restored beside it. The whole photo's first sample has the place as its number.
TILES, SAMPLES = 2**24, 2**48
# On a CPU, products of fewer rows than this are summed in another order. Smaller batches are filled
# up, so that a tile is the same in batches of any size.
FEWEST_CPU_ROWS = 4


def row_number(place: int, tile: int | None = None, sample: int = 0) -> int:
    """Return the number of a row; `tile` is None for the whole photo."""
    return place + (0 if tile is None else (tile + 1) * TILES) + sample * SAMPLES


@dataclass(frozen=True)
class Row:
    """A picture to restore: `view`, in whole grid units, is made when the row's batch comes.

    `place`, `tile`: see `row_number`.
    """

    view: Callable[[], Image]
    place: int
    tile: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the policy wrote for a row: the ids, their text and their images.

    `scores`: of all samples in their order, where a judge was asked; the answer is the best one.
    """

    ids: list[int]
    text: str
    images: list[Image]
    scores: tuple[float, ...] = ()


class Writer:
    """Writes rows in batches.

    `forwards`, `tokens`: how many forward passes and tokens the completions took so far.
    """

    def __init__(self, processor: ChainProcessor, engine: RolloutEngine, batches: Batches):
        self.processor, self.engine, self.batches = processor, engine, batches
        self.forwards = self.tokens = 0

    def write(self, rows: Sequence[Row], samples: int = 1, judge: Judge | None = None,
              given: Sequence[Sequence[int]] | None = None) -> Iterator[Answer]:
        """Yield the answer for each row, in order: of `samples` the one that `judge` likes best.

        `given`: the ids of the chain's texts, which then all rows have.
        """
        engine = RolloutEngine(self.engine.policy, self.engine.layout,
                               dataclasses.replace(self.engine.config, num_generations=samples))
        return self.batches.run(rows, samples, partial(self._write_batch, engine, judge, given))

    def prompt(self, view: Image) -> list[int]:
        """Return the prompt that asks about a picture in whole grid units."""
        # One by one, here and when images are decoded, since a batch can round differently.
        return self.processor.prompt_from_span(self.processor.encode_images([view])[0])

    def answer(self, ids: list[int]) -> Answer:
        """Decode a completion."""
        return Answer(ids, *self.processor.decode(ids))

    def _write_batch(self, engine: RolloutEngine, judge: Judge | None,
                     given: Sequence[Sequence[int]] | None, rows: Sequence[Row]) -> list[Answer]:
        samples, views = engine.config.num_generations, [row.view() for row in rows]
        prompts = [self.prompt(view) for view in views]
        numbers = [row_number(row.place, row.tile, sample) for row in rows for sample in range(samples)]
        if given is not None:
            missing = self._missing(len(rows), samples)
            prompts += prompts[-1:] * missing
            numbers += numbers[-samples:] * missing
        rollout = engine.generate(prompts, rows=numbers, given=given and [given] * len(prompts))
        written = rollout.completion_ids[:len(rows) * samples]
        self.forwards += sum(rollout.forwards[:len(written)])
        self.tokens += sum(map(len, written))
        answers = [self.answer(ids) for ids in written]
        if judge is None:
            return answers[::samples]
        return [_best(answers[number * samples:(number + 1) * samples], view, judge)
                for number, view in enumerate(views)]

    def _missing(self, rows: int, samples: int) -> int:
        """Return how many rows fill a batch up to `FEWEST_CPU_ROWS`."""
        is_cpu = self.engine.policy.get_input_embeddings().weight.device.type == "cpu"
        return max(0, -(-FEWEST_CPU_ROWS // samples) - rows) if is_cpu else 0


def _best(answers: Sequence[Answer], view: Image, judge: Judge) -> Answer:
    """Return the answer whose last image has the highest score.

    An answer without an image scores -1, less than any other.
    """
    judged = [number for number, answer in enumerate(answers) if answer.images]
    scores = [-1.0] * len(answers)
    if judged:
        found = judge([answers[number].images[-1] for number in judged], view)
        for number, score in zip(judged, found, strict=True):
            scores[number] = score
    return dataclasses.replace(answers[best_of(scores)], scores=tuple(scores))
