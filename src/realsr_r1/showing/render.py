"""The page's own HTML: the photo, the chain as far as it is written, and lines on how it goes."""

from __future__ import annotations

import base64
import html
import io
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image

from realsr_r1.showing.visit import Moment

if TYPE_CHECKING:
    from realsr_r1.chain.spec import ChainSpec, Section
    from realsr_r1.restoring.restoration import Piece

PHOTO_PX, PIECE_PX = 1200, 560  # the longest side of pictures inside the page
SHARP_PX = 96  # pictures up to this side are sent as PNG
TITLES = {"degradation": "What is wrong with it"}
EMPTY_CHAIN = ('<p class="hint">The model first names what is wrong with the photo. Then it describes and '
               "draws it, each time closer. Everything appears here as it is written.</p>")


def photo_html(image: Image.Image) -> str:
    """The visitor's photo, before it is restored."""
    return f'<figure class="photo"><img src="{_data_uri(image, PHOTO_PX)}" alt="your photo"></figure>'


def message_html(text: str, kind: str = "note") -> str:
    """One line for the visitor. `kind`: note, bad or busy (with a moving dot)."""
    return f'<div class="message {kind}" role="status">{html.escape(text)}</div>' if text else ""


class ChainView:
    """The chain as far as it is written, in a column for each of its steps.

    `shape`: width and height of the photo, which places kept for images have. An image is encoded
    once, for it is shown again with each new section.
    """

    def __init__(self, chain: ChainSpec, shape: tuple[int, int]):
        self.chain, self.shape = chain, shape
        self._uris: dict[str, tuple[Image.Image, str]] = {}

    def html(self, moment: Moment) -> str:
        """The HTML at this moment."""
        following = None if moment.ahead else next((section.name for section in self.chain.sections
                                                    if section.name not in moment.pieces), None)
        steps, drawn = [], 0
        for label, group in groupby(self.chain.sections, key=lambda section: section.label):
            sections = list(group)
            bodies = "".join(
                self._section(section, moment.pieces.get(section.name), section.name == following)
                for section in sections)
            kind = "drawn" if any(section.is_image for section in sections) else "said"
            drawn += kind == "drawn"
            title = TITLES.get(label, label.replace("_", " ").capitalize())
            steps.append(f'<section class="step {kind}"><h3>{html.escape(title)}</h3>{bodies}</section>')
        return f'<div class="chain" style="--drawn:{drawn}">{"".join(steps)}</div>'

    def _section(self, section: Section, piece: Piece | None, is_next: bool) -> str:
        if piece is None:
            state = "next" if is_next else "later"
            if section.is_image:
                return (f'<div class="blank {state}" style="aspect-ratio:{self.shape[0]}/{self.shape[1]}">'
                        "</div>")
            return f'<div class="lines {state}"><i></i><i></i><i></i></div>'
        if piece.image is not None:
            return (f'<img data-section="{section.name}" src="{self._uri(section.name, piece.image)}" '
                    f'alt="{html.escape(section.label)} image" '
                    f'style="aspect-ratio:{piece.image.width}/{piece.image.height}">')
        text = html.escape(piece.text or "")
        if section.about == "degradation" and "," in text:
            items = "".join(f"<li>{item.strip()}</li>" for item in text.split(",") if item.strip())
            return f'<ul class="items" data-section="{section.name}">{items}</ul>'
        return f'<p data-section="{section.name}">{text or "(no words)"}</p>'

    def _uri(self, name: str, image: Image.Image) -> str:
        known = self._uris.get(name)
        if known is None or known[0] is not image:
            known = self._uris[name] = image, _data_uri(image, PIECE_PX)
        return known[1]


def progress_html(chain: ChainSpec, moment: Moment) -> str:
    """One line on what is being done, with a bar where the photo has tiles."""
    if moment.ahead:
        others = ("Another photo is being restored; yours is next." if moment.ahead == 1 else
                  f"{moment.ahead} photos are ahead of yours.")
        return message_html(f"{others} It begins by itself.", "busy")
    following = next((section for section in chain.sections if section.name not in moment.pieces), None)
    seconds = f"{moment.seconds:.0f} s"
    if following is not None:
        what = f"Drawing: {following.label}" if following.is_image else f"Writing: {following.label}"
        return message_html(f"{what.replace('_', ' ')} · {seconds}", "busy")
    if moment.rows <= 1 or moment.rows_done >= moment.rows:
        return message_html(f"Putting it together · {seconds}", "busy")
    share = moment.rows_done / moment.rows
    tiles = f"{moment.rows_done - 1} of {moment.rows - 1} tiles"
    return (message_html(f"The photo in detail: {tiles} · {seconds}", "busy")
            + f'<div class="bar"><i style="width:{100 * share:.0f}%"></i></div>')


def _data_uri(image: Image.Image, longest: int) -> str:
    image = image.copy()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if max(image.size) <= SHARP_PX else "jpeg"
    image.save(buffer, kind, **({"quality": 90, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
