"""Makes the report's page: what its template shows, as plain texts, numbers and pictures.

Everything comes to this module already read and drawn. The HTML is in templates/report.html.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from realsr_r1.chain.text import parse_chain
from realsr_r1.reporting.charts import Panel, panel_svg
from realsr_r1.reporting.rendering import data_uri, render
from realsr_r1.reporting.run_folder import HEADLINE_SETTINGS, Run
from realsr_r1.reporting.strips import CELL, Strip
from realsr_r1.reporting.style import CSS
from realsr_r1.reporting.tables import (
    NONE,
    TOTAL,
    comparison_rows,
    metrics_headings,
    metrics_notes,
    metrics_rows,
)

EMBEDDED_PX = 2 * CELL  # larger pictures are embedded at twice the size at which they are shown
SECTIONS = {"before-after": "Before and after", "curves": "Training curves",
            "chains": "Chains during training", "restored": "Restored photos", "metrics": "Metrics"}
COMPARED = {"differences": "Differences"}  # the last section of a run with --compare_with


@dataclass(frozen=True)
class Content:
    """What a report shows; an empty part gets a sentence that says how to make it.

    A part is empty when it is None or has no items.
    """

    run: Run
    panels: list[Panel]
    samples: list[Strip]
    restored: list[Strip]
    restored_count: int
    metrics: dict[str, Any] | None
    comparison: tuple[dict[str, Any], dict[str, Any]] | None


def render_page(content: Content) -> str:
    """Return the whole page."""
    sections = SECTIONS | (COMPARED if content.run.differences else {})
    return render("report.html", CSS, title=content.run.name, sections=sections.items(), total=TOTAL,
                  **_header(content), **_comparison(content), **_curves(content), **_metrics(content),
                  samples=list(map(_strip, content.samples)), restored=list(map(_strip, content.restored)),
                  restored_count=content.restored_count, differences=content.run.differences)


# --- header ---

def _header(content: Content) -> dict[str, Any]:
    run = content.run
    known = [key for key in HEADLINE_SETTINGS if run.settings.get(key) is not None]
    head = {key: run.settings[key] for key in known} or run.settings
    others = {key: value for key, value in sorted(run.settings.items()) if key not in head}
    return {"date": f"{run.date:%d %B %Y, %H:%M}", "steps": run.steps, "stopped": run.stopped,
            "tiles": _tiles(content), "headline": {key: _plain(value) for key, value in head.items()},
            "others": {key: _plain(value) for key, value in others.items()}}


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiles(content: Content) -> list[tuple[str, str]]:
    """Return (label, value) of the headline figures that are known."""
    tiles = [("steps", f"{content.run.steps:,}")]
    if content.comparison:  # the figures of the table below it
        before, after = (side["rewards"][TOTAL]["mean"] if TOTAL in side["rewards"] else None
                         for side in content.comparison)
        if None not in (before, after):
            tiles.append(("total reward, before → after", f"{before:.3f} → {after:.3f}".replace("-", "−")))
    elif content.panels:  # the total reward, or the loss of a run without rewards
        tiles.append((f"{content.panels[0].title}, start → end", _start_to_end(content.panels[0])))
    if content.run.seconds:
        minutes = content.run.seconds / 60
        tiles.append(("training time", f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"))
    if content.metrics:
        means = {row["name"]: row["mean"].get("psnr") for row in content.metrics["rows"]}
        known = [means[row] for row in ("LQ input", "restored") if means.get(row) is not None]
        if known:
            which = ", input → restored" if len(known) > 1 else ""
            tiles.append((f"PSNR of {content.metrics['pairs']} photos{which}",
                          f"{' → '.join(f'{value:.2f}' for value in known)} dB"))
    return tiles


def _start_to_end(panel: Panel) -> str:
    """Return the means at the start and at the end.

    Both get the number of decimals that shows three digits of the larger one.
    """
    start, end = panel.training.start_and_end
    largest = max(abs(start), abs(end))
    if largest < 1e-4:  # as GRPO's loss, which is 0 but for rounding while the policy is its own reference
        return "about 0"
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    return " → ".join(f"{value:.{decimals}f}".replace("-", "−") for value in (start, end))


# --- sections ---

def _comparison(content: Content) -> dict[str, Any]:
    if content.comparison is None:
        return {"comparison": None}
    before, after = content.comparison
    return {"comparison": comparison_rows(before, after), "is_paired": bool(after.get("paired")),
            "counts": " and ".join(str(count) for count in dict.fromkeys(
                side.get("n") for side in (before, after)) if count),
            "labels": [before.get("label") or "before", after.get("label") or "after"]}


def _curves(content: Content) -> dict[str, Any]:
    if not content.panels:
        return {"charts": []}
    return {"charts": [{"title": panel.title, "figures": _start_to_end(panel), "svg": panel_svg(panel)}
                       for panel in content.panels],
            "window": content.panels[0].training.window, "has_rewards": bool(content.run.rewards()),
            "has_dots": any(panel.evaluation for panel in content.panels)}


def _metrics(content: Content) -> dict[str, Any]:
    if content.metrics is None:
        return {"metrics": None}
    return {"metrics": metrics_rows(content.metrics), "pairs": content.metrics["pairs"],
            "intervals": content.metrics.get("intervals"),
            "metrics_names": metrics_headings(content.metrics),
            "metrics_notes": metrics_notes(content.metrics)}


# --- strips ---

def _strip(strip: Strip) -> dict[str, Any]:
    chain = parse_chain(strip.text, strip.spec) if strip.text is not None else None
    sections = []
    for section in strip.spec.sections if chain else ():
        if section.name in chain.sections and not section.is_image:
            body = chain.sections[section.name]
            sections.append((section.label, body, _degradation(body, strip.degradation)
                             if section.about == "degradation" else None))
    return {"title": strip.title, "is_broken": chain is not None and not chain.is_well_formed,
            "pictures": [(column, picture and data_uri(picture, EMBEDDED_PX, optimize=True))
                         for column, picture in strip.pictures.items()],
            "rewards": [_reward(*reward) for reward in strip.rewards.items()], "metrics": strip.metrics,
            "text": strip.text, "sections": sections, "tags": ", ".join(strip.tags)}


def _reward(name: str, value: float | None) -> tuple[str, str, int]:
    """Return a reward's name, the text of its value, and how much of its bar is full, in percent."""
    share = 0 if value is None or name == TOTAL else round(100 * min(1.0, max(0.0, value)))
    return name, NONE if value is None else f"{value:.2f}", share


def _degradation(body: str, truth: list[str]) -> list[tuple[str, bool | None, str]]:
    """Return the items of a text, each with whether it is right and with what it should be.

    They are compared as the reward compares them. Where the truth isn't known there is None.
    """
    items = []
    for index, item in enumerate(part.strip() for part in body.split(",")):
        expected = truth[index].strip() if index < len(truth) else ""
        is_right = item.lower() == expected.lower() if truth else None
        items.append((item, is_right, expected if is_right is False else ""))
    return items
