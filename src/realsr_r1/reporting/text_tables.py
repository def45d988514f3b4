"""Tables of metrics as text: on the screen, in Markdown, for LaTeX, and photo by photo as CSV.

The rows and figures of metrics.json are those of the report's page (tables.py).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from realsr_r1.core.templates import template
from realsr_r1.reporting.tables import NONE, Cell, metrics_headings, metrics_notes, metrics_rows

HOW = {"version", "channel", "rounding", "border"}  # keys of a metric that older files don't have


@dataclass(frozen=True)
class TextTable:
    """A table of any form. `corner`: the heading of the rows' names. `notes`: lines below it."""

    title: str
    corner: str
    headings: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]

    def text(self, suffix: str) -> str:
        """Return it as Markdown (`md`) or LaTeX (`tex`)."""
        return template("realsr_r1.reporting", f"table.{suffix}").render(table=self)

    def print(self) -> None:
        """Show it on the screen, intervals below their figures."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table, console = Table(title=Text(self.title)), Console()
        table.add_column(Text(self.corner))
        for heading in self.headings:
            table.add_column(Text(heading), justify="right")
        for name, cells in self.rows:
            table.add_row(Text(name), *(Text(f"{cell.figure or NONE}\n{cell.interval}".strip(),
                                             style="bold" if cell.is_best else "") for cell in cells))
        fewest = [max(len(word) for word in f"{column.header} {' '.join(map(str, column.cells))}".split())
                  for column in table.columns]
        narrowest = sum(fewest) + 3 * len(fewest) + 1
        if narrowest > console.width:  # many methods: wider than the screen, but no figure is cut
            console.width = narrowest
            for column, width in zip(table.columns, fewest, strict=True):
                column.width = width
        console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def metrics_table(result: dict[str, Any], in_full: bool = True) -> TextTable:
    """Return the table of metrics.json: a row for each metric.

    `in_full`: with notes on how each metric was computed, too.
    """
    computed = [f"{metric['label']}: {metric['version']}; channel: {metric['channel']}; rounded: "
                f"{metric['rounding']}; border of {metric['border']} px cut off"
                f"{'; ' * bool(metric.get('note'))}{metric.get('note', '')}"
                for metric in result["metrics"].values() if metric.keys() >= HOW] if in_full else []
    rows = [(f"{row.name} {'↓' if row.lower_better else '↑'}", row.cells) for row in metrics_rows(result)]
    brackets = f"in brackets {result['intervals']}; " if "intervals" in result else ""
    title = f"Means of {result['pairs']} photo(s); {brackets}bold: best of a row."
    return TextTable(title, "metric", metrics_headings(result), rows, computed + metrics_notes(result))


def metrics_csv(result: dict[str, Any]) -> str:
    """Return a line for each photo, then the line `mean`; the restored images' columns come first."""
    rows = {row["name"]: row["mean"] for row in result["rows"]}
    methods = result["methods"]
    ordered = [*methods, *(row for row in rows if row not in methods)]
    columns = [(row, name) for row in ordered for name in result["metrics"] if name in rows[row]]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    alone = len(methods) == 1
    writer.writerow(["name", "resized", *(name if alone and row == methods[0] else f"{row} {name}"
                                          for row, name in columns)])
    for image in result["images"]:
        writer.writerow([image["name"], int(image["resized"]),
                         *(image[row].get(name) for row, name in columns)])
    writer.writerow(["mean", "", *(rows[row].get(name) for row, name in columns)])
    return file.getvalue()
