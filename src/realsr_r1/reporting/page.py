"""Writes the report's page: sections, strips and tiles as HTML.

The page needs no script and no other file. Everything comes to this module already read and drawn;
texts from files are escaped here or in tables.py.
"""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.text import parse_chain
from realsr_r1.reporting.charts import Panel, panel_svg
from realsr_r1.reporting.run_folder import HEADLINE_SETTINGS, Run
from realsr_r1.reporting.strips import CELL, Strip, contained
from realsr_r1.reporting.style import CSS
from realsr_r1.reporting.tables import TOTAL, comparison_table, metrics_table

if TYPE_CHECKING:
    from PIL import Image

EMBEDDED_PX = 2 * CELL  # larger pictures are embedded at twice the size at which they are shown


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
    sections = [
        ("before-after", "Before and after", _comparison(content)),
        ("curves", "Training curves", _curves(content)),
        ("chains", "Chains during training", _samples(content)),
        ("restored", "Restored photos", _restored(content)),
        ("metrics", "Metrics", _metrics(content)),
    ]
    name = html.escape(content.run.name)
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{inner}</section>'
                   for anchor, title, inner in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · RealSR-R1</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(content, name)}<nav>{links}</nav>\n{body}\n"
        "<footer>Written by <code>realsr-r1 report</code>. The pictures are enlarged smoothly to one "
        "size.</footer>\n</main>\n</body>\n</html>\n")


# --- header ---

def _header(content: Content, name: str) -> str:
    run = content.run
    known = [key for key in HEADLINE_SETTINGS if run.settings.get(key) is not None]
    head = {key: run.settings[key] for key in known} or run.settings
    others = {key: value for key, value in sorted(run.settings.items()) if key not in head}
    stopped = f'<div class="muted">{html.escape(run.stopped)}</div>' if run.stopped else ""
    folded = f"<details><summary>All settings</summary>{_settings(others)}</details>" if others else ""
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>'
                    for label, value in _tiles(content))
    return (f'<div class="kicker">RealSR-R1 training report</div><h1>{name}</h1>'
            f'<div class="muted">{run.date:%d %B %Y, %H:%M} · {run.steps} steps</div>{stopped}'
            f'<div class="tiles">{tiles}</div>{_settings(head)}{folded}')


def _settings(settings: dict[str, Any]) -> str:
    items = "".join(f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(_plain(value))}</dd>"
                    for key, value in settings.items())
    return f'<dl class="settings">{items}</dl>' if items else ""


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiles(content: Content) -> list[tuple[str, str]]:
    """Return (label, value) of the headline figures that are known."""
    tiles = [("steps", f"{content.run.steps:,}")]
    if content.comparison:  # the figures of the table below it
        before, after = (side["rewards"][TOTAL]["mean"] if TOTAL in side["rewards"] else None
                         for side in content.comparison)
        if before is not None:
            tiles.append(("total reward, before → after", f"{before:.3f} → {after:.3f}".replace("-", "−")))
    elif content.panels:  # the total reward, or the loss of a run without rewards
        tiles.append((f"{content.panels[0].title}, start → end", _start_to_end(content.panels[0])))
    if content.run.seconds:
        minutes = content.run.seconds / 60
        tiles.append(("training time", f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"))
    if content.metrics:
        rows = content.metrics["rows"]  # the first is the input where there are gains over it
        known = [row["mean"]["psnr"] for row in (rows[:1] if content.metrics.get("gain") else []) + rows[-1:]
                 if row["mean"].get("psnr") is not None]
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

def _missing(text: str, command: str) -> str:
    # The page must not break flags at their hyphens.
    words = " ".join(f"<span>{html.escape(word)}</span>" for word in command.split())
    return f'<p class="missing">{text} <code>{words}</code></p>'


def _comparison(content: Content) -> str:
    if content.comparison is None:
        return _missing("No rewards before and after training here. Two files of reward means "
                        "(scripts/evidence.sh writes them) are shown by",
                        "realsr-r1 report --run RUN --compare before.json after.json")
    before, after = content.comparison
    counts = " and ".join(str(count) for count in dict.fromkeys(side.get("n") for side in (before, after))
                          if count)
    of = f" of {html.escape(counts)} completions" if counts else ""
    legend = " ▲ and ▼ mark differences whose interval leaves out zero." if after.get("paired") else ""
    return f"<p>Mean rewards{of}, with 95 % intervals.{legend}</p>{comparison_table(before, after)}"


def _curves(content: Content) -> str:
    if not content.panels:
        return _missing("The log holds no rewards and no loss. They come from",
                        "realsr-r1 grpo --config FILE.yaml")
    figures = "".join(
        f'<figure class="chart"><header><h3>{html.escape(panel.title)}</h3>'
        f"<span>{_start_to_end(panel)}</span></header>"
        f"{panel_svg(panel)}</figure>" for panel in content.panels)
    window = content.panels[0].training.window
    dots = " Dots: evaluation." if any(panel.evaluation for panel in content.panels) else ""
    none = "" if content.run.rewards() else " This run logged no rewards, as a cold start does."
    return (f"<p>Pale line: every logged step. Strong line: mean of the last {window}. The figures at the "
            f"right: the mean of the first and of the last steps.{dots}{none}</p><div "
            f"class=charts>{figures}</div>")


def _samples(content: Content) -> str:
    if not content.samples:
        return _missing("The run saved no sample groups. They are saved by",
                        "realsr-r1 grpo --config FILE.yaml --sample_steps 10")
    return ("<p>The first completion of the group saved at the first, the middle and the last such step: not "
            f"chosen by its rewards.</p>{''.join(map(_strip, content.samples))}")


def _restored(content: Content) -> str:
    if not content.restored:
        return _missing("No restored photos here. Make them, then give them to the report:",
                        "realsr-r1 restore --model MODEL --input PHOTOS --output RESTORED; "
                        "realsr-r1 report --run RUN --restored RESTORED --gt ORIGINALS")
    shown = len(content.restored)
    which = "All of them" if shown == content.restored_count else (
        f"{shown} of {content.restored_count}, evenly spaced by name")
    return f"<p>{which}, not chosen by how they turned out.</p>{''.join(map(_strip, content.restored))}"


def _metrics(content: Content) -> str:
    if content.metrics is None:
        return _missing("No metrics here. Make them, then give them to the report with --metrics:",
                        "realsr-r1 evaluate --restored RESTORED --gt ORIGINALS --output METRICS")
    colour = any(row["name"] == "mean colour" for row in content.metrics["rows"])
    baseline = (" Mean colour: a flat image of the original's mean colour, the least that counts."
                if colour else "")
    return f"<p>Means over {content.metrics['pairs']} photos.{baseline}</p>{metrics_table(content.metrics)}"


# --- strips ---

def _strip(strip: Strip) -> str:
    chain = parse_chain(strip.text, strip.spec) if strip.text is not None else None
    badge = '<span class="badge">chain not well formed</span>' if chain and not chain.is_well_formed else ""
    pictures = "".join(_figure(strip, column) for column in strip.pictures)
    return (f'<article class="strip"><header><h3>{html.escape(strip.title)}</h3>{badge}</header>'
            f'<div class="strip-body" style="--pictures: {len(strip.pictures)}"><div '
            f'class="pictures">{pictures}</div>'
            f"{_scores(strip)}{_chain(strip)}</div></article>")


def _figure(strip: Strip, column: str) -> str:
    picture = strip.pictures.get(column)
    label = html.escape(f"{column} of {strip.title}")
    shown = (f'<img src="{_data_uri(picture)}" alt="{label}">' if picture is not None
             else f'<div class="none" role="img" aria-label="no {label}"></div>')
    return f"<figure>{shown}<figcaption>{column}</figcaption></figure>"


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    contained(picture, EMBEDDED_PX, enlarge=False).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _scores(strip: Strip) -> str:
    if strip.rewards:
        return ('<ul class="scores">'
                f'{"".join(_score(name, value) for name, value in strip.rewards.items())}</ul>')
    lines = "".join(f"<dt>{html.escape(label)}</dt><dd>{html.escape(figures)}</dd>"
                    for label, figures in strip.metrics)
    return f'<dl class="lines">{lines}</dl>'


def _score(name: str, value: float | None) -> str:
    share = 0 if value is None or name == TOTAL else round(100 * min(1.0, max(0.0, value)))
    bar = "<span></span>" if name == TOTAL else f'<span class="bar"><i style="width:{share}%"></i></span>'
    shown = "–" if value is None else f"{value:.2f}"
    style = " total" if name == TOTAL else ""
    return (f'<li><span class="name{style}">{html.escape(name)}</span>{bar}'
            f'<span class="value{style}">{shown}</span></li>')


def _chain(strip: Strip) -> str:
    """Return the chain's texts by section, and the text as it was written.

    The degradations are compared with the truth where it is known.
    """
    if strip.text is None:
        return ""
    sections = parse_chain(strip.text, strip.spec).sections
    rows = []
    for section in strip.spec.sections:
        if section.name in sections and not section.is_image:
            body = sections[section.name]
            is_degradation = section.about == "degradation"
            rows.append((html.escape(section.label),
                         _degradation(body, strip.degradation) if is_degradation else html.escape(body)))
    if strip.tags:
        rows.append(("tags", f'<span class="muted">{html.escape(", ".join(strip.tags))}</span>'))
    listed = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in rows)
    return (f'<dl class="chain">{listed}</dl><details class="raw"><summary>The text as written</summary>'
            f"<pre>{html.escape(strip.text)}</pre></details>")


def _degradation(body: str, truth: list[str]) -> str:
    """Return the items of a text, each marked right or wrong where the truth is known.

    They are compared as the reward compares them.
    """
    items = [item.strip() for item in body.split(",")]
    listed = []
    for index, item in enumerate(items):
        if not truth:
            listed.append(f"<li>{html.escape(item)}</li>")
            continue
        expected = truth[index] if index < len(truth) else ""
        right = item.lower() == expected.strip().lower()
        correction = (f' <span class="muted">({html.escape(expected)})</span>'
                      if expected and not right else "")
        mark = '<span class="right">✓</span>' if right else '<span class="wrong">✗</span>'
        listed.append(f"<li>{mark} {html.escape(item)}{correction}</li>")
    return f'<ul class="items">{"".join(listed)}</ul>'
