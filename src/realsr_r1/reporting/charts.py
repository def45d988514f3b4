"""Draws a run's curves with matplotlib: one themed SVG for each panel, and one PNG with all panels.

The SVGs are for the page. Knows `Run`, and no HTML besides the SVG element.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from realsr_r1.reporting.run_folder import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (3.9, 2.1)
COLUMNS = 3

# Every colour in an SVG is one of these placeholders; a CSS variable of the page's theme replaces
# it.
PLACEHOLDERS = {"muted": "#010203", "line": "#010204", "accent": "#010205", "second": "#010206"}
# The colours in the PNG, on white.
LIGHT = {"muted": "#6a6a64", "line": "#e3e1da", "accent": "#0a6c66", "second": "#b4531f"}


@dataclass(frozen=True)
class Panel:
    """One chart: a title, the training values, and the evaluation's values if there are any."""

    title: str
    training: Series
    evaluation: Series | None


def reward_title(name: str) -> str:
    """Return a reward's title: `format_reward` becomes `format`."""
    return name.removesuffix("_reward").replace("_", " ")


def panels(run: Run) -> list[Panel]:
    """Return the panels that were logged: total reward, each reward, loss, and signs of a collapse.

    Those are a completion's length, the entropy, spread within groups, and repeated rows of codes.
    """
    keys = [("total reward", "reward")]
    keys += [(reward_title(name), f"rewards/{name}/mean") for name in run.rewards()]
    keys += [("loss", "loss"), ("completion length, tokens", "completions/mean_length"),
             ("entropy, nats", "entropy"), ("spread of the total within groups", "spread/total"),
             ("groups without spread, share", "frac_reward_zero_std"),
             ("repeated rows of codes, share", "repeated_rows")]
    return [Panel(title, training, run.series(f"eval_{key}")) for title, key in keys
            if (training := run.series(key))]


def panel_svg(panel: Panel) -> Markup:
    """Return the chart as an `<svg>` element without ids, colours or fonts of its own."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": panel.title}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        _draw(figure.add_subplot(), panel, PLACEHOLDERS)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue(), panel.title)


def save_png(charts: list[Panel], title: str, path: Path) -> None:
    """Draw all panels in one picture on white."""
    from matplotlib.figure import Figure

    plain = {"parse_math": False}  # a name with two dollar signs is no formula
    rows = -(-len(charts) // COLUMNS)
    columns = min(COLUMNS, len(charts))
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, (PANEL_INCHES[1] + 0.25) * rows + 0.3),
                    layout="constrained")
    figure.suptitle(title, fontsize=11, **plain)
    for index, panel in enumerate(charts, start=1):
        axes = figure.add_subplot(rows, columns, index)
        _draw(axes, panel, LIGHT)
        axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold", **plain)
    figure.savefig(path, format="png", dpi=150)


def _draw(axes: Axes, panel: Panel, colours: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    series = panel.training
    marker = {"marker": "o", "markersize": 3} if len(series.steps) == 1 else {}
    axes.plot(series.steps, series.values, color=colours["accent"], alpha=0.35, linewidth=0.9, **marker)
    axes.plot(series.steps, series.moving_average(), color=colours["accent"], linewidth=2.0)
    if panel.evaluation:
        axes.plot(panel.evaluation.steps, panel.evaluation.values, color=colours["second"], linewidth=1.2,
                  marker="o",
                  markersize=3.5)
    axes.margins(x=0.02, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=colours["muted"], pad=4)
    for text in (axes.yaxis.get_offset_text(), axes.xaxis.get_offset_text()):
        text.set(color=colours["muted"], fontsize=9)
    axes.set_xlabel("step", fontsize=9, color=colours["muted"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours["line"])


def _themed(svg: str, title: str) -> Markup:
    """Return only the `<svg>` element, in the colours and fonts of the page.

    The XML head, the metadata and the ids of groups are removed, as the page has many charts.
    """
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"|\sid="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'font-family: [^;"]*;?', "", svg)
    for dimension in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?)\s{dimension}="[^"]*"', r"\1", svg, count=1)
    for name, colour in PLACEHOLDERS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return Markup('<svg role="img" aria-label="{} by step"').format(title) + Markup(svg.removeprefix("<svg"))
