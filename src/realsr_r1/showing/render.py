"""The page's own HTML: the photo, the chain as far as it is written, and lines on how it goes.

The HTML itself is in templates/fragments.html, which escapes every text.
"""

from __future__ import annotations

import base64
import io
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from PIL import Image

from realsr_r1.core.templates import fragment
from realsr_r1.core.texts import split_list
from realsr_r1.showing.visit import Moment

if TYPE_CHECKING:
    from realsr_r1.chain.spec import ChainSpec, Section
    from realsr_r1.restoring.restoration import Piece

PHOTO_PX, PIECE_PX = 1200, 560  # the longest side of pictures inside the page
SHARP_PX = 96  # pictures up to this side are sent as PNG
html = partial(fragment, "realsr_r1.showing", "fragments.html")  # name of a macro, its values -> HTML
TITLES = {"degradation": "What is wrong with it"}
EMPTY_CHAIN = ('<p class="hint">The model first names what is wrong with the photo. Then it describes and '
               "draws it, each time closer. Everything appears here as it is written.</p>")


def photo_html(image: Image.Image) -> str:
    """The visitor's photo, before it is restored."""
    return html("photo", _data_uri(image, PHOTO_PX))


def message_html(text: str, kind: str = "note") -> str:
    """One line for the visitor. `kind`: note, bad or busy (with a moving dot)."""
    return html("message", text, kind)


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
            parts = [self._section(section, moment.pieces.get(section.name), section.name == following)
                     for section in sections]
            kind = "drawn" if any(section.is_image for section in sections) else "said"
            drawn += kind == "drawn"
            title = TITLES.get(label, label.replace("_", " ").capitalize())
            steps.append((kind, title, parts))
        return html("chain", drawn, steps)

    def _section(self, section: Section, piece: Piece | None, is_next: bool) -> dict[str, Any]:
        """What the template's `chain` shows of a section."""
        if piece is None:
            state = "next" if is_next else "later"
            return {"kind": "blank" if section.is_image else "lines", "state": state, "shape": self.shape}
        if piece.image is not None:
            return {"kind": "image", "name": section.name, "label": section.label, "shape": piece.image.size,
                    "uri": self._uri(section.name, piece.image)}
        text = piece.text or ""
        if section.about == "degradation" and "," in text:
            return {"kind": "items", "name": section.name, "texts": split_list(text)}
        return {"kind": "text", "name": section.name, "texts": [text]}

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
    return html("tiles", f"The photo in detail: {tiles} · {seconds}", round(100 * share))


def _data_uri(image: Image.Image, longest: int) -> str:
    image = image.copy()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if max(image.size) <= SHARP_PX else "jpeg"
    image.save(buffer, kind, **({"quality": 90, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
