"""The report's tables as rows of texts: rewards before and after training, and metrics.

The metrics are those of `realsr-r1 evaluate`, the rewards those of `realsr-r1 score`. Knows numbers
and their forms in files; templates/tables.html has the HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Count, Ge, Json, Le, Len, MinLen, Number, Text, TypedDict

TOTAL = "total"
NONE = "–"  # stands for a number that isn't known

Interval = Annotated[list[Number], Len(2, 2)]
Column = list[Number | None]  # a value of each prompt


class Mean(TypedDict, extra_items=Json):
    """A reward's mean and its 95 % interval."""

    mean: Number | None
    ci95: NotRequired[Interval | None]


class Difference(TypedDict, extra_items=Json):
    """The paired difference of a reward, after - before, and its 95 % interval."""

    difference: Number | None
    ci95: NotRequired[Interval | None]


class MeansFile(TypedDict, extra_items=Json):
    """A file of reward means. `n`: completions. `paired`: in that of the policy after training."""

    rewards: Annotated[dict[Text, Mean], MinLen(1)]
    label: NotRequired[Text | None]
    n: NotRequired[Count | Text | None]
    paired: NotRequired[dict[Text, Difference] | None]


class Metric(TypedDict, extra_items=Json):
    """How a metric is shown."""

    label: Text
    unit: Text | None
    decimals: Annotated[int, Ge(0), Le(12)]
    lower_better: bool


class MetricsRow(TypedDict, extra_items=Json):
    """The means of the input, of mean colour, or of a method's restored photos."""

    name: Text
    mean: dict[Text, Number | None]
    ci95: NotRequired[dict[Text, Interval | None]]


class MetricsImage(TypedDict, extra_items=dict[Text, Number | None] | bool | Text | None):
    """The values of one photo: those of a row have its name as key."""

    name: Text


class MetricsFile(TypedDict, extra_items=Json):
    """metrics.json of `realsr-r1 evaluate`.

    `methods`: names of the rows of restored photos. `intervals`: what those in it are. `paired`:
    another row -> metric -> by how much the first method differs from that row.
    """

    pairs: Count
    metrics: dict[Text, Metric]
    rows: Annotated[list[MetricsRow], MinLen(1)]
    images: list[MetricsImage]
    methods: NotRequired[Annotated[list[Text], MinLen(1)]]
    intervals: NotRequired[Text]
    paired: NotRequired[dict[Text, dict[Text, Difference]]]
    notes: NotRequired[list[Text]]
    unavailable: NotRequired[dict[Text, Text]]


def read_comparison(before: Path, after: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read two files of reward means.

    Raises `UserError` for a file of another form, and when the two name different rewards.
    """
    way = ('--compare takes files of reward means, "rewards": {name: {"mean": number, "ci95": [low, high]}}, '
           "as realsr-r1 score writes them")
    sides = [read_json(path, MeansFile, way) for path in (before, after)]
    if sides[0]["rewards"].keys() != sides[1]["rewards"].keys():
        raise UserError(f"{before} and {after} name different rewards (given by --compare): "
                        f"{', '.join(sides[0]['rewards'])} and {', '.join(sides[1]['rewards'])}")
    return sides[0], sides[1]


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json of `realsr-r1 evaluate`. Raises `UserError` for a file of another form."""
    return read_json(path, MetricsFile, "--metrics takes the metrics.json of realsr-r1 evaluate")


@dataclass(frozen=True)
class Cell:
    """A figure with its interval in brackets. `verdict`: "right" or "wrong", with its `title`."""

    figure: str
    interval: str = ""
    verdict: str = ""
    title: str = ""
    is_up: bool = True
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table. `marks`: dots and spans of both means on an axis that ends at `highest`.

    A mark is (kind, its place in percent, its width in percent or None for a dot).
    """

    name: str
    cells: list[Cell]
    marks: list[tuple[str, float, float | None]] = field(default_factory=list)
    highest: int = 1
    lower_better: bool = False


def figure(value: float | None, form: str) -> str:
    """Return a number in this format, with a real minus; a dash where it isn't known."""
    return NONE if value is None else f"{value:{form}}"


def comparison_rows(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """Return a row for each reward, the total last.

    A row has mean and 95 % interval before and after, their difference, and both means on an axis
    from 0.
    """
    rows = []
    for name in sorted(after["rewards"], key=lambda name: name == TOTAL):
        sides = [before["rewards"][name], after["rewards"][name]]
        means = [side["mean"] for side in sides]
        paired = (after.get("paired") or {}).get(name) or {
            "difference": None if None in means else means[1] - means[0]}
        bounds = paired.get("ci95")
        cells = [Cell(figure(side["mean"], ".3f"), _interval(side.get("ci95"))) for side in sides]
        cells.append(Cell(figure(paired["difference"], "+.3f"), _interval(bounds, "+"), *_verdict(
            bounds, "above zero", "below zero")))
        rows.append(Row(name, cells, *_axis(sides)))
    return rows


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    return f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]" if bounds else ""


def _verdict(bounds: list[float] | None, above: str, below: str) -> tuple[str, str, bool]:
    """Return kind, title and direction of the arrow where an interval excludes zero."""
    if not bounds or bounds[0] <= 0 <= bounds[1]:
        return "", "", True
    return ("right", above, True) if bounds[0] > 0 else ("wrong", below, False)


def _axis(sides: list[dict[str, Any]]) -> tuple[list[tuple[str, float, float | None]], int]:
    """Return the marks of both means with their intervals, from 0 to the next whole number."""
    known = [(side, name) for side, name in zip(sides, ("before", "after")) if side["mean"] is not None]
    highest = max([1, *(math.ceil(max([side["mean"], *(side.get("ci95") or [])])) for side, _ in known)])

    def percent(value: float) -> float:
        return round(100 * min(1.0, max(0.0, value / highest)), 2)

    marks: list[tuple[str, float, float | None]] = []
    for side, name in known:
        if side.get("ci95"):
            low, high = map(percent, side["ci95"])
            marks.append((name, low, round(max(0.0, high - low), 2)))
        marks.append((name, percent(side["mean"]), None))
    return marks, highest


def metrics_headings(result: dict[str, Any]) -> list[str]:
    """Return the heading of each cell of `metrics_rows`."""
    first = result.get("methods", ["restored"])[0]
    return [*(row["name"] for row in result["rows"]),
            *(f"{first} − {row}" for row in result.get("paired", {}))]


def metrics_rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each metric, with a cell for each of the file's rows; the best stands out.

    Then follows a cell for each difference of the first method to another row. Figures have their
    95 % intervals where the file has them.
    """
    rows = []
    for name, metric in result["metrics"].items():
        values = [row["mean"].get(name) for row in result["rows"]]
        known = [value for value in values if value is not None]
        best = (min if metric["lower_better"] else max)(known) if len(known) > 1 else None
        form = f".{metric['decimals']}f"
        cells = [Cell(figure(value, form), bounds_text(row.get("ci95", {}).get(name), form),
                      is_best=best is not None and value == best)
                 for row, value in zip(result["rows"], values, strict=True)]
        cells += [_difference(found.get(name), metric) for found in result.get("paired", {}).values()]
        unit = f", {metric['unit']}" if metric["unit"] else ""
        rows.append(Row(metric["label"] + unit, cells, lower_better=metric["lower_better"]))
    return rows


def metrics_notes(result: dict[str, Any]) -> list[str]:
    """Return the notes below the table of metrics."""
    missing = [f"{name}: n/a ({reason})" for name, reason in result.get("unavailable", {}).items()]
    return missing + result.get("notes", [])


def _difference(found: dict[str, Any] | None, metric: dict[str, Any]) -> Cell:
    """Return a metric's difference, with an arrow where its interval leaves out zero."""
    if not found or found["difference"] is None:
        return Cell("")
    bounds, form = found.get("ci95"), f"+.{metric['decimals']}f"
    sign = -1 if metric["lower_better"] else 1
    kind, title, _ = _verdict(bounds and sorted(sign * bound for bound in bounds), "better", "worse")
    return Cell(_minus(f"{found['difference']:{form}}"), bounds_text(bounds, form), kind, title,
                kind != "wrong")


def bounds_text(bounds: list[float] | None, form: str) -> str:
    """Return an interval in brackets, or an empty text where there is none."""
    return _minus(f"[{bounds[0]:{form}}, {bounds[1]:{form}}]") if bounds else ""


def _minus(text: str) -> str:
    return text.replace("-", "−")
