"""Scores the images of photos with loaded metrics, in batches of one size.

Knows no folders and no tables: pairing.py says which files belong together, summary.py makes means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.measuring.images import LQ, MEAN_COLOUR, load_pairs
from realsr_r1.measuring.metrics import (
    BASELINE_METRICS,
    LARGEST_TILE,
    Scorer,
    described,
    metric_of,
    tiles_of,
)
from realsr_r1.measuring.pairing import Triple, listed
from realsr_r1.measuring.score_store import ScoreStore

MOST_PIXELS = LARGEST_TILE**2  # of the images of a batch; one image may have more


class Scoring:
    """Scores photos. `resize`, `border`: see `load_pairs`. `store`: where scores are kept."""

    def __init__(self, scorers: dict[str, Scorer], store: ScoreStore, resize: bool = False, border: int = 0):
        self.scorers, self.store = scorers, store
        self.resize, self.border = resize, border
        self._made_with = {name: [described(name, border), resize, scorer.device]
                           for name, scorer in scorers.items()}

    def usable(self, triples: Sequence[Triple], skip_bad: bool) -> tuple[list[Triple], list[str]]:
        """Return the photos whose images can be read and compared, and a note for each of the others.

        Nothing is scored yet, so that a fault is seen before the long work. Raises `UserError` that
        names the first one that can't, unless `skip_bad` is true.
        """
        from tqdm import tqdm

        good, notes = [], []
        for triple in tqdm(triples, desc="reading", unit="photo"):
            try:
                load_pairs(triple, self.resize, self.border)
            except UserError as error:
                if not skip_bad:
                    raise
                notes.append(f"left out: {error}")
            else:
                good.append(triple)
        if not good:
            raise UserError(f"none of the photos can be read; the first: {notes[0]}")
        return good, notes

    def score(self, triples: Sequence[Triple]) -> list[str]:
        """Fill in `scores` of photos that are `usable`. Returns notes on how they were scored."""
        from tqdm import tqdm

        each = {name: scorer for name, scorer in self.scorers.items() if metric_of(name).kind != "set"}
        with tqdm(total=len(triples) * max(1, len(each)), desc="evaluate", unit=" score") as bar:
            for batch in batches(triples):
                pairs = [load_pairs(triple, self.resize, self.border) for triple in batch]
                for triple in batch:
                    triple.scores = {row: {} for row in pairs[0]}
                for name, scorer in each.items():
                    for row in pairs[0]:
                        if row == MEAN_COLOUR and name not in BASELINE_METRICS:
                            continue
                        keys = [self._key(name, row, [triple]) for triple in batch]
                        values = self.store.known(keys)
                        if values is None:
                            images, originals = zip(*(pair[row] for pair in pairs), strict=True)
                            values = scorer.scores(images, originals)
                            self.store.add(keys, values)
                        for triple, value in zip(batch, values, strict=True):
                            triple.scores[row][name] = value
                    bar.update(len(batch))
        large = [triple.name for triple in triples if any(len(tiles_of(size)) > 1 for size in triple.sizes)]
        tiled = [metric_of(name).label for name in each if metric_of(name).in_tiles]
        if not (large and tiled):
            return []
        return [f"{', '.join(tiled)} of {listed(large)}: means over tiles of at most {LARGEST_TILE} px"]

    def score_set(self, name: str, row: str, triples: Sequence[Triple]) -> float | None:
        """Return the value of a metric of whole sets for a row, or None where it isn't defined."""
        keys = [self._key(name, row, triples)]
        values = self.store.known(keys)
        if values is None:
            sides = ((load_pairs(triple, self.resize, self.border)[row][side] for triple in triples)
                     for side in (0, 1))
            values = [self.scorers[name].score_set(*sides)]
            self.store.add(keys, values)
        return values[0]

    def _key(self, name: str, row: str, triples: Sequence[Triple]) -> str:
        files = [path for triple in triples for path in _files(triple, row)]
        made_with: list[Any] = [*self._made_with[name], row if row in (LQ, MEAN_COLOUR) else None]
        return self.store.key(made_with, files)


def _files(triple: Triple, row: str) -> list[Any]:
    """The files that a row's scores depend on: the first restored image may cut the others' region."""
    first = next(iter(triple.restored.values()))
    own = {LQ: [triple.lq, first], MEAN_COLOUR: [first]}.get(row) or [triple.restored[row]]
    return own + ([triple.gt] if triple.gt else [])


def batches(triples: Sequence[Triple]) -> Iterator[list[Triple]]:
    """Yield neighbours whose images have the same sizes, as many as `MOST_PIXELS` allows.

    Which photos share a batch depends on their sizes alone, so a repeated evaluation gives the same.
    """
    batch: list[Triple] = []
    for triple in triples:
        pixels = max(width * height for width, height in triple.sizes)
        if batch and (triple.sizes != batch[0].sizes or (len(batch) + 1) * pixels > MOST_PIXELS):
            yield batch
            batch = []
        batch.append(triple)
    if batch:
        yield batch
