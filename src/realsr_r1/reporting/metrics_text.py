"""The table of metrics.json as text: on the screen, in Markdown, for LaTeX, and photo by photo as CSV.

Its rows and figures are those of the report's page (tables.py).
"""

from __future__ import annotations

import csv
import io
from typing import Any

from realsr_r1.core.templates import template
from realsr_r1.reporting.tables import NONE, metrics_headings, metrics_notes, metrics_rows


def metrics_text(result: dict[str, Any], suffix: str) -> str:
    """Return the table as Markdown (`md`) or LaTeX (`tex`), with how each metric was computed."""
    return template("realsr_r1.reporting", f"metrics.{suffix}").render(
        rows=metrics_rows(result), names=metrics_headings(result), notes=metrics_notes(result),
        pairs=result["pairs"], metrics=result["metrics"], intervals=result["intervals"])


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


def print_metrics(result: dict[str, Any]) -> None:
    """Print the means, one line for each metric, and the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"mean of {result['pairs']} photo(s), with 95 % intervals")
    table.add_column("metric")
    for name in metrics_headings(result):
        table.add_column(Text(name), justify="right")
    for row in metrics_rows(result):
        table.add_row(Text(f"{row.name} {'↓' if row.lower_better else '↑'}"), *(
            Text(f"{cell.figure or NONE}\n{cell.interval}".strip(), style="bold" if cell.is_best else "")
            for cell in row.cells))
    console = Console()
    console.print(table)
    for note in metrics_notes(result):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
