"""What metrics.json holds: means, intervals and paired differences of scored photos.

Knows numbers and notes; reads no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from realsr_r1.measuring.images import MEAN_COLOUR
from realsr_r1.measuring.intervals import RESAMPLES, mean_with_interval, paired_difference
from realsr_r1.measuring.metrics import BASELINE_METRICS, FID_FEATURES, described, metric_of
from realsr_r1.measuring.pairing import Triple, listed

INTERVALS = f"95 % percentiles of {RESAMPLES:,} bootstrap resamples of the photos"


def summarise(triples: Sequence[Triple], rows: Sequence[str], methods: Sequence[str],
              metrics: Sequence[str], border: int, of_set: Callable[[str, str], float | None],
              notes: Sequence[str]) -> dict[str, Any]:
    """Return the content of metrics.json.

    It has how each metric was computed; the means, intervals and counts of each row; the paired
    differences of the first method to each other row; and each photo's values. `rows`: their names,
    in order, with the `methods`. `of_set(metric, row)`: the value of a metric of whole sets.
    """
    summary, notes = [], [*notes, *_notes_on_sizes(triples)]
    for row in rows:
        entry: dict[str, Any] = {"name": row, "mean": {}, "ci95": {}, "count": {}}
        for name in metrics:
            if row == MEAN_COLOUR and name not in BASELINE_METRICS:
                continue
            if metric_of(name).kind == "set":
                found, count = {"mean": of_set(name, row), "ci95": None}, len(triples)
            else:
                values, photos = _column(triples, row, name)
                found, count = mean_with_interval(values, photos), sum(value is not None for value in values)
            for key, value in {**found, "count": count}.items():
                entry[key][name] = value
            if row in methods and count < len(triples):
                notes.append(f"{name} is not defined for {len(triples) - count} of {len(triples)} {row} "
                             "images (too small or flat); its mean leaves them out")
        summary.append(entry)
    if "fid" in metrics and len(triples) < FID_FEATURES:
        notes.append(f"fid of {len(triples)} images is rough: below {FID_FEATURES} images it depends on "
                     "their number")
    first = methods[0]
    return {
        "pairs": len(triples),
        "methods": list(methods),
        "metrics": {name: described(name, border) for name in metrics},
        "intervals": INTERVALS,
        "rows": summary,
        "paired": {row: differences(triples, row, first, metrics) for row in rows
                   if row not in (first, MEAN_COLOUR)},
        "images": [{"name": triple.name, "resized": triple.resized, "region": triple.region,
                    **{row: triple.scores[row] for row in rows}} for triple in triples],
        "notes": notes,
    }


def differences(triples: Sequence[Triple], before: str, after: str,
                metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by how much row `after` differs from row `before`, photo by photo: metric -> difference.

    Metrics of whole sets are left out.
    """
    return {name: paired_difference(_column(triples, before, name)[0], *_column(triples, after, name))
            for name in metrics if metric_of(name).kind != "set"}


def _column(triples: Sequence[Triple], row: str, name: str) -> tuple[list[float | None], list[str]]:
    return [triple.scores[row][name] for triple in triples], [triple.name for triple in triples]


def _notes_on_sizes(triples: Sequence[Triple]) -> list[str]:
    notes = []
    resized = sum(triple.resized and triple.region is None for triple in triples)
    if resized:
        notes.append(f"{resized} of {len(triples)} restored images were resized to the original's size "
                     "(bicubic)")
    for region in sorted({triple.region for triple in triples if triple.region}):
        names = [triple.name for triple in triples if triple.region == region]
        notes.append(f"{len(names)} of {len(triples)} restored images have another shape than the original, "
                     f"and are compared on what both show ({region}): {listed(names)}")
    return notes
