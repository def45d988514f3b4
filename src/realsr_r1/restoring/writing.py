"""Lets the policy write: pictures of the policy's sizes in, answers with their images out.

Knows rows: their prompts, their given words, their numbers, their samples. What a picture is a part
of, and how parts come together, it leaves to `realsr_r1.restoring.restorer`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from realsr_r1.restoring.batches import FEWEST_CPU_ROWS
from realsr_r1.restoring.branching import Branching
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

    `scores`: of all candidates that came to the end, in their order, where a judge was asked; the
    answer is the best one.
    """

    ids: list[int]
    text: str
    images: list[Image]
    scores: tuple[float, ...] = ()


class Writer:
    """Writes rows in batches.

    `forwards`, `tokens`: how many forward passes and tokens the completions took so far.
    `row_passes`: the same passes times the rows in each; see `Rollout`.
    """

    def __init__(self, processor: ChainProcessor, engine: RolloutEngine, batches: Batches):
        self.processor, self.engine, self.batches = processor, engine, batches
        self.forwards = self.tokens = self.row_passes = 0
        self._counting = threading.Lock()  # batches may be written side by side

    def write(self, rows: Sequence[Row], candidates: Sequence[int] = (1,), judge: Judge | None = None,
              given: Sequence[Sequence[int]] | None = None) -> Iterator[Answer]:
        """Yield the answer for each row, in order: of its candidates the one that `judge` likes best.

        `candidates`: how many write each image; the last number is also that of further images.
        `given`: the ids of the chain's texts, which then all rows have.
        """
        engine = RolloutEngine(self.engine.policy, self.engine.layout,
                               dataclasses.replace(self.engine.config, num_generations=candidates[0]))
        work = partial(self._write_batch, engine, candidates, judge, given)
        return self.batches.run(rows, candidates[0], work)

    def prompt(self, view: Image) -> list[int]:
        """Return the prompt that asks about a picture in whole grid units."""
        # One by one, here and when images are decoded, since a batch can round differently.
        return self.processor.prompt_from_span(self.processor.encode_images([view])[0])

    def answer(self, ids: list[int]) -> Answer:
        """Decode a completion."""
        return Answer(ids, *self.processor.decode(ids))

    def _write_batch(self, engine: RolloutEngine, candidates: Sequence[int], judge: Judge | None,
                     given: Sequence[Sequence[int]] | None, rows: Sequence[Row],
                     check: Callable[[], None]) -> list[Answer]:
        samples, views = candidates[0], [row.view() for row in rows]
        prompts = [self.prompt(view) for view in views]
        numbers = [row_number(row.place, row.tile, sample) for row in rows for sample in range(samples)]
        if given is not None:
            missing = self._missing(len(rows), candidates[-1])
            views, prompts = [every + every[-1:] * missing for every in (views, prompts)]
            numbers += numbers[-samples:] * missing
        choose = (Branching(candidates, views, judge, self._decode_image)
                  if judge is not None and candidates[-1] < samples else None)
        rollout = engine.generate(prompts, rows=numbers, given=given and [given] * len(prompts),
                                  choose=choose, check=check)
        written = rollout.completion_ids[:len(rows) * samples]
        with self._counting:
            self.forwards += sum(rollout.forwards[:len(written)])
            self.tokens += sum(map(len, written))
            self.row_passes += rollout.row_passes
        answers = [[self.answer(written[number]) for number in range(first, first + samples)
                    if rollout.kept[number]] for first in range(0, len(written), samples)]
        if judge is None:
            return [first for first, *_ in answers]
        return [_best(found, view, judge) for found, view in zip(answers, views, strict=False)]

    def _decode_image(self, ids: Sequence[int]) -> Image:
        [[image]] = self.processor.decode_images([ids])
        return image

    def _missing(self, rows: int, samples: int) -> int:
        """Return how many pictures of `samples` rows fill a batch up to `FEWEST_CPU_ROWS`."""
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
    [best] = best_of(scores)
    return dataclasses.replace(answers[best], scores=tuple(scores))
