"""Published results beside one's own: a row for each method, a column for each metric.

The rows are those of published/table1.json, which says where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, Number, Text, TypedDict
from realsr_r1.reporting.tables import Cell, bounds_text, figure
from realsr_r1.reporting.text_tables import TextTable

TABLE_1 = Path(__file__).parent / "published" / "table1.json"
# Table 1's names of metrics -> those of `realsr-r1 evaluate`.
METRICS = {"PSNR": "psnr", "SSIM": "ssim", "LPIPS": "lpips", "DISTS": "dists", "FID": "fid", "NIQE": "niqe",
           "MUSIQ": "musiq", "MANIQA": "maniqa-pipal", "CLIPIQA": "clipiqa", "TOPIQ": "topiq_nr"}
ALL, MARK = "all", "*"


class Record(TypedDict, extra_items=Json):
    """A value of `TABLE_1`."""

    dataset: Text
    metric: Text
    method: Text
    value: Number


class Table1(TypedDict, extra_items=Json):
    """`TABLE_1`."""

    source: Text
    records: list[Record]


def published_rows(dataset: str | None, differs: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return method -> metric of ours -> value, of a data set of Table 1; none without a data set.

    `differs`: see `beside_published`. Raises `UserError` for a data set or a metric that isn't in it.
    """
    unknown = sorted(differs.keys() - ({ALL, *METRICS} if dataset else set()))
    if unknown:
        raise UserError(f"the suite's `differs` has {unknown[0]!r}; it says what differs in `published` "
                        f"rows, of {ALL} or of {', '.join(METRICS)}")
    if dataset is None:
        return {}
    records = read_json(TABLE_1, Table1)["records"]
    rows: dict[str, dict[str, float]] = {}
    for record in records:
        if record["dataset"] == dataset:
            rows.setdefault(record["method"], {})[METRICS[record["metric"]]] = record["value"]
    if not rows:
        known = dict.fromkeys(record["dataset"] for record in records)
        raise UserError(f"the suite's `published` is {dataset!r}; Table 1 has rows of {', '.join(known)}")
    return rows


def beside_published(title: str, own: str, result: dict[str, Any],
                     published: Mapping[str, Mapping[str, float]], differs: Mapping[str, str]) -> TextTable:
    """Return the table of published rows with one's own at its end.

    The best of a column is bold where its values can be compared: there are published ones, unmarked.
    `own`: the name of that row. `result`: the content of its metrics.json. `differs`: a metric of
    Table 1, or `all` -> why its published values may be of another protocol; they get a mark.
    """
    metrics = result["metrics"]
    mine = next(row for row in result["rows"] if row["name"] == result["methods"][0])
    marked = {name for said, name in METRICS.items() if {said, ALL} & differs.keys()}
    best: dict[str, float | None] = {}
    for name, shown in metrics.items():
        known = [row[name] for row in (*published.values(), mine["mean"]) if row.get(name) is not None]
        is_compared = name not in marked and len(known) > 1
        best[name] = (min if shown["lower_better"] else max)(known) if is_compared else None

    def cells(row: Mapping[str, float | None], mark: str,
              intervals: Mapping[str, list[float] | None]) -> list[Cell]:
        forms = {name: f".{shown['decimals']}f" for name, shown in metrics.items()}
        return [Cell(figure(row.get(name), form) + mark * (name in marked and name in row),
                     bounds_text(intervals.get(name), form),
                     is_best=row.get(name) is not None and row.get(name) == best[name])
                for name, form in forms.items()]

    rows = [(f"{method} (published)", cells(values, MARK, {})) for method, values in published.items()]
    rows.append((own, cells(mine["mean"], "", mine["ci95"])))
    notes = [f"{MARK} {f'{said}: ' if said != ALL else ''}{why}" for said, why in differs.items()]
    notes.append(f"published: {read_json(TABLE_1, Table1)['source']}" if published
                 else "Table 1 has no rows for this suite")
    notes += [f"{name}: n/a ({reason})" for name, reason in result.get("unavailable", {}).items()]
    headings = [f"{shown['label']} {'↓' if shown['lower_better'] else '↑'}" for shown in metrics.values()]
    return TextTable(title, "method", headings, rows, notes)
