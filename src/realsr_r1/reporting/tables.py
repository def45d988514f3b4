"""The report's tables as HTML: rewards before and after training, and metrics.

The metrics are those of `realsr-r1 evaluate`.
"""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import read_json

TOTAL = "total"


def read_comparison(before: Path, after: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read two files of reward means.

    Each is {"label", "n", "rewards": {name: {"mean", "ci95": [lo, hi]}}, "paired" (in `after`)}.
    Raises `UserError` for a file of another form, and when the two name different rewards.
    """
    sides = []
    for path in (before, after):
        value = read_json(path)
        rewards = value.get("rewards") if isinstance(value, dict) else None
        if not isinstance(rewards, dict) or not rewards or not all(
                isinstance(item, dict) and isinstance(item.get("mean"), (int, float))
                for item in rewards.values()):
            raise UserError(f"{path} isn't a file of reward means (given by --compare): it needs "
                            '"rewards": {name: {"mean": number, "ci95": [low, high]}}')
        sides.append(value)
    if sides[0]["rewards"].keys() != sides[1]["rewards"].keys():
        raise UserError(f"{before} and {after} name different rewards (given by --compare): "
                        f"{', '.join(sides[0]['rewards'])} and {', '.join(sides[1]['rewards'])}")
    return sides[0], sides[1]


def comparison_table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return a table with one row for each reward.

    A row has mean and 95 % interval before and after, their difference, and both means on an axis
    from 0.
    """
    labels = [html.escape(str(side.get("label") or name))
              for side, name in ((before, "before"), (after, "after"))]
    rows = []
    for name in sorted(after["rewards"], key=lambda name: name == TOTAL):
        sides = [before["rewards"][name], after["rewards"][name]]
        paired = (after.get("paired") or {}).get(name) or {"difference": sides[1]["mean"] - sides[0]["mean"]}
        rows.append(
            f'<tr{" class=total" if name == TOTAL else ""}><td>{html.escape(name)}</td>'
            + "".join(f"<td>{side['mean']:.3f}{_interval(side.get('ci95'))}</td>" for side in sides)
            + f"<td>{paired['difference']:+.3f}{_verdict(paired.get('ci95'))}"
              f"{_interval(paired.get('ci95'), '+')}</td>"
            + f"<td>{_range(sides)}</td></tr>")
    head = (f'<tr><th>reward</th><th><i class="key before"></i>{labels[0]}</th>'
            f'<th><i class="key after"></i>{labels[1]}</th><th>difference</th><th></th></tr>')
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    if not bounds:
        return ""
    return f' <span class="interval">[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]</span>'


def _verdict(bounds: list[float] | None) -> str:
    """Return an arrow where the interval of the difference excludes zero."""
    if not bounds or bounds[0] <= 0 <= bounds[1]:
        return ""
    return '&nbsp;<span class="right" title="above zero">▲</span>' if bounds[0] > 0 else (
        '&nbsp;<span class="wrong" title="below zero">▼</span>')


def _range(sides: list[dict[str, Any]]) -> str:
    """Draw both means with their intervals on an axis from 0 to the next whole number."""
    highest = max(1, math.ceil(max(max([side["mean"], *(side.get("ci95") or [])]) for side in sides)))

    def percent(value: float) -> float:
        return round(100 * min(1.0, max(0.0, value / highest)), 2)

    marks = []
    for side, name in zip(sides, ("before", "after")):
        if side.get("ci95"):
            low, high = map(percent, side["ci95"])
            marks.append(f'<i class="span {name}" style="left:{low}%;width:{max(0.0, high - low):.2f}%"></i>')
        marks.append(f'<i class="dot {name}" style="left:{percent(side["mean"])}%"></i>')
    return f'<div class="range" title="0 to {highest}"><i class="axis"></i>{"".join(marks)}</div>'


def _gain(found: dict[str, float] | None, metric: dict[str, Any]) -> str:
    """Return a metric's gain over the input, with an arrow where its interval leaves out zero."""
    if not found:
        return ""
    mean, half, digits = found["mean"], found["interval"], metric["decimals"]
    sign = -1 if metric["lower_better"] else 1
    bounds = sorted((sign * (mean - half), sign * (mean + half)))
    verdict = ""
    if bounds[0] > 0 or bounds[1] < 0:
        kind, title = ("right", "better") if bounds[0] > 0 else ("wrong", "worse")
        verdict = f'&nbsp;<span class="{kind}" title="{title}">{"▲" if kind == "right" else "▼"}</span>'
    return (f'{mean:+.{digits}f}{verdict} <span class="interval">'
            f"[{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]</span>").replace("-", "−")


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json of `realsr-r1 evaluate`. Raises `UserError` for a file of another form."""
    value = read_json(path)
    if not isinstance(value, dict) or not {"metrics", "rows", "images"} <= value.keys():
        raise UserError(f"{path} isn't a metrics.json of realsr-r1 evaluate (given by --metrics)")
    return value


def metrics_table(result: dict[str, Any]) -> str:
    """Return a table with one row for each metric.

    It has a column each for LQ input, mean colour and restored; the best value of a row stands out.
    Where the input was measured, too, one more has the difference to it with its 95 % interval.
    """
    gain = result.get("gain") or {}
    head = "".join(f"<th>{html.escape(row['name'])}</th>" for row in result["rows"])
    head += "<th>restored − input</th>" if gain else ""
    rows = []
    for name, metric in result["metrics"].items():
        values = [row["mean"].get(name) for row in result["rows"]]
        known = [value for value in values if value is not None]
        best = (min if metric["lower_better"] else max)(known) if len(known) > 1 else None
        shown = ["–" if value is None else f"{value:.{metric['decimals']}f}" for value in values]
        cells = "".join(f"<td{' class=best' if best is not None and value == best else ''}>{text}</td>"
                        for value, text in zip(values, shown))
        cells += f"<td>{_gain(gain.get(name), metric)}</td>" if gain else ""
        unit = f", {metric['unit']}" if metric.get("unit") else ""
        better = "lower" if metric["lower_better"] else "higher"
        arrow = (f'<span class="muted" title="{better} is better">'
                 f'{"↓" if metric["lower_better"] else "↑"}</span>')
        rows.append(f"<tr><td>{html.escape(metric['label'] + unit)} {arrow}</td>{cells}</tr>")
    notes = [f"{name}: n/a ({reason})" for name, reason in result.get("unavailable", {}).items()]
    notes += result.get("notes", [])
    listed = (f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>'
              if notes else "")
    return f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table></div>{listed}'
