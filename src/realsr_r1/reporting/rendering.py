"""What the pages of reports and datasets have in common: their policy, and pictures inside of them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from realsr_r1.core.templates import template
from realsr_r1.reporting.strips import contained

if TYPE_CHECKING:
    from PIL import Image

# A page runs nothing and asks for nothing, whatever stands in it. Its own styles have no file.
POLICY = "; ".join(("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'",
                    "form-action 'none'"))


def render(name: str, css: str, **values: Any) -> str:
    """Return the page that a file in `templates` makes of `values`. `css`: its style sheet, ours."""
    return template("realsr_r1.reporting", name).render(policy=POLICY, css=Markup(css), **values)


def data_uri(picture: Image.Image, most_px: int, **saving: Any) -> str:
    """Return a picture as the data URI of a PNG of at most `most_px` px a side.

    `saving`: Pillow's options.
    """
    buffer = io.BytesIO()
    contained(picture, most_px, enlarge=False).save(buffer, format="PNG", **saving)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
