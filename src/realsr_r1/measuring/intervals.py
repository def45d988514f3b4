"""Means with 95 % bootstrap intervals, and paired differences: of rewards and of metrics alike.

Knows numbers and what each belongs to; no models, pictures or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RESAMPLES = 10_000
MOST_DRAWS = 10_000_000  # at a time: 80 MB


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that aren't None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def mean_with_interval(values: Sequence[float | None], photos: Sequence[str]) -> dict[str, Any]:
    """Return the mean and its 95 % bootstrap interval, over the values that aren't None.

    `photos`: what each value belongs to. Fewer than two values have no interval (None).
    """
    present = [(value, photo) for value, photo in zip(values, photos, strict=True) if value is not None]
    interval = bootstrap_interval(*zip(*present, strict=True)) if len(present) > 1 else None
    return {"mean": mean(values), "ci95": interval}


def paired_difference(before: Sequence[float | None], after: Sequence[float | None],
                      photos: Sequence[str]) -> dict[str, Any]:
    """Return the mean of after - before and its 95 % bootstrap interval.

    Only pairs with both values count. `photos`: of each pair.
    """
    differences = [None if old is None or new is None else new - old
                   for old, new in zip(before, after, strict=True)]
    found = mean_with_interval(differences, photos)
    return {"difference": found["mean"], "ci95": found["ci95"]}


def bootstrap_interval(values: Sequence[float], photos: Sequence[str]) -> list[float]:
    """Return the [2.5 %, 97.5 %] percentiles of the mean, with whole photos resampled, a fixed seed.

    Where all are of one photo, single values are resampled.
    """
    import numpy

    if len(set(photos)) == 1:
        photos = [str(number) for number in range(len(values))]
    _, photo = numpy.unique(photos, return_inverse=True)
    sums, counts = numpy.bincount(photo, weights=values), numpy.bincount(photo)
    random, at_a_time = numpy.random.default_rng(0), min(RESAMPLES, max(1, MOST_DRAWS // len(sums)))
    means = []
    for start in range(0, RESAMPLES, at_a_time):
        draws = random.integers(0, len(sums), (min(at_a_time, RESAMPLES - start), len(sums)))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1))
    return [float(limit) for limit in numpy.percentile(numpy.concatenate(means), [2.5, 97.5])]
