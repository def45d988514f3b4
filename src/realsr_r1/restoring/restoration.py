"""What goes into and comes out of a `Restorer`: a photo, a section as it is written, a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.text import Chain
from realsr_r1.restoring.sizes import Box

if TYPE_CHECKING:
    from PIL.Image import Image

# Told how many rows of a photo are to be written (once for each photo) and how many were.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Photo:
    """A photo to restore.

    `place`: its place among the photos, from 0, below 2^24, which decides its noise. `name`: what
    messages call it.
    """

    image: Image
    place: int = 0
    name: str = "the photo"


@dataclass(frozen=True)
class Piece:
    """A section of a chain that has been written.

    `name`, `label`: of the section (`rough_image`, `rough`). `kind`: "text" or "image". `text` or
    `image`: its body. `is_preview`: whether the image shows the whole photo in the model's own size
    and a larger one, put together from tiles, follows.
    """

    name: str
    label: str
    kind: str
    text: str | None = None
    image: Image | None = None
    is_preview: bool = False


@dataclass(frozen=True)
class Restoration:
    """A restored photo.

    `final`: the result, RGB, exactly scale times the photo's size, colours fixed. `lq`: the photo
    as the policy saw it, for a tiled one at the result's size. `images`: the images of the chain by
    section, as the policy wrote them; those of a tiled photo are put together, each in its own
    scale. `text`: what was written about the whole photo, with `<|image|>` for each image; `chain`:
    the same, parsed. `tiles`: the place of each tile in px of the result and what was written for
    it; none where the photo was one image. `scores`: with a judge, the mean score of the tiles that
    were taken (`JUDGE`) and, without branching, of all tiles' first samples (`JUDGE of the first
    samples`).
    `settings`: what it was made with. `note`: what the user should know, or an empty text.
    """

    final: Image
    lq: Image
    images: dict[str, Image]
    text: str
    chain: Chain
    tiles: list[tuple[Box, str]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def rough(self) -> Image | None:
        """The chain's image `rough`, or None where the chain has none."""
        return self._labelled("rough")

    @property
    def middle(self) -> Image | None:
        """The chain's image `middle`, or None where the chain has none."""
        return self._labelled("middle")

    def _labelled(self, label: str) -> Image | None:
        return self.images.get(f"{label}_image", self.images.get(label))
