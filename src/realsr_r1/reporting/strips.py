"""Strips: LQ, the chain's images and HQ of one photo side by side.

Reads them from sample folders and from a restored folder, and draws a PNG. Knows files and PIL
images, no HTML.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import existing_folder
from realsr_r1.core.images import list_images, load_image
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.run_files import PromptFile, Rewards
from realsr_r1.core.texts import composed, split_list, split_tags
from realsr_r1.reporting.run_folder import sample_folders

CELL = 144  # the side of a picture in the PNG and on the page, in px
MOST_RESTORED = 12  # the most strips of restored photos in one report


@dataclass(frozen=True)
class Strip:
    """One photo on its way through the chain.

    `pictures`: column -> image or None, in the order they are shown. `text`: the chain, in the form
    of `spec`. `rewards`: name -> value or None. `metrics`: (label, figures). `degradation`, `tags`:
    the truth, where it is known.
    """

    title: str
    pictures: dict[str, Image.Image | None]
    spec: ChainSpec
    text: str | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    metrics: list[tuple[str, str]] = field(default_factory=list)
    degradation: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The rewards or metrics in one line."""
        rewards = [f"{name} {value:.2f}" for name, value in self.rewards.items() if value is not None]
        return " · ".join(rewards or [" ".join(pair) for pair in self.metrics])


def sample_strips(run: Path) -> list[Strip]:
    """Return the first completion of the first, the middle and the last saved group.

    The list is empty where the run saved none.
    """
    folders = sample_folders(run)
    chosen = sorted({0, len(folders) // 2, len(folders) - 1}) if folders else []
    return [_sample_strip(*folders[index]) for index in chosen]


def _sample_strip(step: int, folder: Path) -> Strip:
    prompt = _read(folder / "prompt.json", PromptFile)
    rewards = _read(folder / "rewards.json", Rewards)
    spec = _spec(folder)
    files = {"LQ": "lq", **{label: f"completion-0-{label}" for label in spec.labels}, "HQ": "hq"}
    source, truth = prompt.get("source"), prompt.get("degradation") or []
    return Strip(
        title=f"Step {step}" + (f" · {source}" if source else ""),
        pictures={column: _picture(folder / f"{file}.png") for column, file in files.items()},
        spec=spec,
        text=_text(folder / "completion-0.txt"),
        rewards={name: values[0] for name, values in rewards.items() if values},
        degradation=split_list(truth) if isinstance(truth, str) else truth,
        tags=split_tags(prompt.get("tag") or []))


def restored_strips(restored: Path, gt: Path | None, metrics: dict[str, Any] | None) -> tuple[list[Strip],
                                                                                              int]:
    """Return strips of a restored folder with each photo's metrics, and the number of photos.

    The strips are spaced evenly by name. Raises `UserError` when a folder is missing or has no
    images.
    """
    files = list_images(existing_folder(restored, "--restored"))
    if not files:
        raise UserError(f"no images in {restored} (given by --restored)")
    originals = {composed(path.stem): path for path in list_images(existing_folder(gt, "--gt"))} if gt else {}
    scores = {image["name"]: image for image in metrics["images"]} if metrics else {}
    count = min(len(files), MOST_RESTORED)
    chosen = [files[index * len(files) // count] for index in range(count)]
    strips = []
    for path in chosen:
        chain, name = restored / "chains" / path.stem, composed(path.stem)
        spec = _spec(chain)
        pictures = {"LQ": _picture(chain / "lq.png"),
                    **{label: _picture(chain / f"{label}.png") for label in spec.labels[:-1]},
                    spec.labels[-1]: load_image(path),
                    "HQ": load_image(originals[name]) if name in originals else None}
        lines = _metric_lines(scores[name], metrics["metrics"]) if name in scores else []
        strips.append(Strip(path.stem, pictures, spec, _text(chain / "chain.txt"), metrics=lines))
    return strips, len(files)


def _metric_lines(scores: dict[str, Any], metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a pair for each metric, as `("PSNR (Y)", "22.31 dB (LQ input 24.10)")`."""
    lines = []
    for name, metric in metrics.items():
        values = {row: scores[row].get(name) for row in ("restored", "LQ input") if row in scores}
        if values.get("restored") is None:
            continue
        shown = {row: f"{value:.{metric['decimals']}f}" for row, value in values.items() if value is not None}
        other = f" (LQ input {shown['LQ input']})" if "LQ input" in shown else ""
        unit = f" {metric['unit']}" if metric.get("unit") else ""
        lines.append((metric["label"], shown["restored"] + unit + other))
    return lines


def draw_strips(strips: list[Strip], path: Path) -> None:
    """Draw all strips below one another in a PNG on white, each with a line of text above it."""
    from PIL import ImageDraw, ImageFont

    title_font, font = ImageFont.load_default(15), ImageFont.load_default(12)
    gap, heading, margin = 8, 24, 16
    # Restored photos may be of another chain than the run's samples.
    shown = dict.fromkeys(column for strip in strips for column in strip.pictures if column != "HQ")
    columns = [*shown, "HQ"]
    width = 2 * margin + len(columns) * (CELL + gap) - gap
    row_height = heading + CELL + 14
    sheet = Image.new("RGB", (width, 2 * margin + 20 + len(strips) * row_height - 14), "white")
    draw = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        draw.text((margin + index * (CELL + gap) + CELL / 2, margin), column, fill="#6a6a64", font=font,
                  anchor="ma")
    for row, strip in enumerate(strips):
        top = margin + 20 + row * row_height
        draw.text((margin, top), strip.title, fill="#1d1d1b", font=title_font)
        left = margin + draw.textlength(strip.title, font=title_font) + 14
        draw.text((left, top + 3), _shortened(strip.summary, lambda text: draw.textlength(text, font=font),
                                              width - margin - left), fill="#6a6a64", font=font)
        for index, column in enumerate(columns):
            corner = (margin + index * (CELL + gap), top + heading)
            picture = strip.pictures.get(column)
            if picture is None:
                draw.rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), outline="#e3e1da")
            else:
                scaled = contained(picture, CELL, enlarge=True)
                sheet.paste(scaled, (corner[0] + (CELL - scaled.width) // 2,
                                     corner[1] + (CELL - scaled.height) // 2))
    sheet.save(path, format="PNG")


def contained(image: Image.Image, side: int, enlarge: bool) -> Image.Image:
    """Scale `image` smoothly so that its longer side is `side` px.

    Without `enlarge` a smaller image stays as it is.
    """
    scale = side / max(image.size)
    if scale >= 1 and not enlarge:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(text: str, measure: Callable[[str], float], room: float) -> str:
    if measure(text) <= room:
        return text
    while text and measure(text + "…") > room:
        text = text[:-1]
    return text.rstrip(" ·") + "…"


def _picture(path: Path) -> Image.Image | None:
    return load_image(path) if path.is_file() else None


def _spec(folder: Path) -> ChainSpec:
    """Return the chain whose texts and images lie in `folder`.

    It is the published chain where no file says so (in a folder of an older version).
    """
    path = folder / CHAIN_FILE
    return ChainSpec.from_yaml(path) if path.is_file() else ChainSpec.published()


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _read(path: Path, form: Any) -> dict[str, Any]:
    """Read a file of a saved group, which some runs don't have."""
    return read_json(path, form, "remove the folder to leave it out") if path.is_file() else {}
