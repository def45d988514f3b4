"""The published code's rules, written a second time: as little code as says them.

Written from a description of that code, whose statements were checked against its source. What the
profile "published" does is compared with this.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence

import numpy
from PIL import Image

SECTIONS = ("degradation", "rough_understand", "rough_image", "middle_understand", "middle_image",
            "final_understand", "final_image")


def format_score(text: str) -> float:
    """1 where one lazy pattern fits the whole text."""
    pattern = r"\s*".join(f"<{name}>.*?</{name}>" for name in SECTIONS)
    return 1.0 if re.fullmatch(pattern, text, re.DOTALL) else 0.0


def tag_score(text: str, tag: Sequence[str]) -> float:
    """The share of the tags on the first line whose letters stand in the rough description."""
    found = re.search("<rough_understand>(.*?)</rough_understand>", text, re.DOTALL)
    described = found[1].lower() if found else ""
    tags = [one.strip().lower() for one in tag[0].split(",") if one.strip()]
    return min(1.0, sum(one in described for one in tags) / len(tags))


def image_score(images: Sequence[Image.Image], experts: Sequence[Callable[[Image.Image], float]]) -> float:
    """The mean of the experts' scores of the last image, whatever the text is."""
    return sum(expert(images[-1]) for expert in experts) / len(experts)


def sizes(target: int, unit: int) -> list[tuple[int, int]]:
    """All sizes that a photo may be fitted to."""
    budget, found = (target // unit) ** 2, []
    width, height = budget, 1
    while width > 0:
        if max(width, height) / min(width, height) <= 4:
            found.append((width * unit, height * unit))
        if (height + 1) * width <= budget:
            height += 1
        else:
            width -= 1
    return found


def fitted(photo: Image.Image, target: int, unit: int, draw: random.Random) -> Image.Image:
    """The photo at the nearest of these sizes, cropped at a place that is drawn."""
    def likeness(size: tuple[int, int]) -> float:
        ratios = size[0] / photo.width, size[1] / photo.height
        return min(ratios) / max(ratios)

    width, height = max(sizes(target, unit), key=lambda size: (likeness(size), size))
    while photo.width >= 2 * width and photo.height >= 2 * height:
        photo = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BOX)
    scale = max(width / photo.width, height / photo.height)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    left = draw.randint(0, photo.width - width)
    top = draw.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def picture(pixels: numpy.ndarray) -> numpy.ndarray:
    """Decoded pixels (3, H, W) in about [-1, 1] -> 8 bits (H, W, 3), without rounding."""
    return ((pixels.clip(-1.0, 1.0) + 1.0) / 2.0 * 255).astype(numpy.uint8).transpose(1, 2, 0)


def prompt(names: Mapping[str, int], encode: Callable[[str], list[int]], question: str,
           codes: Sequence[Sequence[int]], code_ids: Sequence[int], codes_per_unit: int) -> list[int]:
    """The ids of a question with its image at `<|image|>`; `names`: of special tokens."""
    before, after = question.split("<|image|>")
    rows, columns = len(codes) // codes_per_unit, len(codes[0]) // codes_per_unit
    image = [names["<racm3:break>"], names[f"<reserved{8800 + rows:05d}>"],
             names[f"<reserved{8800 + columns:05d}>"]]
    for row in codes:
        image += [*(code_ids[code] for code in row), names["<reserved08799>"]]
    return [names["<s>"], *encode(before), *image, names["<eoss>"], *encode(after), names["<reserved08706>"]]


def top_k(scores: Sequence[float]) -> int:
    """How many choices are drawn from inside an image, its size included, by the scores of all."""
    weights = [math.exp(score - max(scores)) for score in scores]
    shares = [weight / sum(weights) for weight in weights]
    entropy = min(10.0, -sum(share * math.log(share) for share in shares if share))
    return round(1 + 1999 / (1 + math.exp(5 - entropy)))
