"""Puts tiles together into one picture, with smooth weights and in bands of rows.

Knows pixels and places (`Tiling`); no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from realsr_r1.core.images import scale_to

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.restoring.sizes import Tiling


class Blender:
    """Adds the tiles of a picture one after the other, and gives the picture when all are there.

    A pixel is the mean of the tiles that cover it, weighted by a raised cosine: a tile's weight
    rises from its border over the overlap and is 1 inside. The sums are kept in float32 for the
    rows of one tile; rows that no later tile reaches become bytes at once. `tiling`: the places of
    the tiles in their own size.
    """

    def __init__(self, tiling: Tiling):
        self.tiling = tiling
        self._boxes = tiling.boxes()
        (width, height), (tile_width, tile_height) = tiling.canvas, tiling.tile
        self._across, self._down = (_window(side, tiling.overlap) for side in (tile_width, tile_height))
        self._total_across, self._total_down = (_total(length, places, window) for length, places, window in (
            (width, tiling.lefts, self._across), (height, tiling.tops, self._down)))
        self._weights = (self._down[:, None] * self._across)[..., None]
        self._sums = numpy.zeros((tile_height, width, 3), numpy.float32)  # of the rows from `_top` on
        self._top = 0
        self._pixels = numpy.empty((height, width, 3), numpy.uint8)

    def add(self, tile: Image) -> None:
        """Add the next tile, in the order of `Tiling.boxes`; one of another size is scaled."""
        left, top, right, _ = next(self._boxes)
        self._finish_to(top)
        pixels = numpy.asarray(scale_to(tile, self.tiling.tile), dtype=numpy.float32)
        self._sums[:, left:right] += pixels * self._weights

    def picture(self) -> Image:
        """Return the picture; call it once, when all tiles were added."""
        from PIL import Image

        self._finish_to(self.tiling.canvas[1])
        return Image.fromarray(self._pixels)

    def _finish_to(self, top: int) -> None:
        """Turn the sums of all rows above `top` into pixels."""
        count = top - self._top
        if count:
            done = self._sums[:count] / (self._total_down[self._top:top, None] * self._total_across)[..., None]
            self._pixels[self._top:top] = done.round().clip(0, 255)
            self._sums[:-count] = self._sums[count:].copy()
            self._sums[-count:] = 0
            self._top = top


def _window(side: int, overlap: int) -> numpy.ndarray:
    """Return the weights along one side of a tile, (side,) float32, all above 0."""
    ramp = min(overlap, side // 2)
    window = numpy.ones(side, numpy.float32)
    if ramp:
        rise = (1 - numpy.cos(numpy.pi * (numpy.arange(ramp) + 0.5) / ramp)) / 2
        window[:ramp], window[-ramp:] = rise, rise[::-1]
    return window


def _total(length: int, places: tuple[int, ...], window: numpy.ndarray) -> numpy.ndarray:
    """Return the sum of the weights that lie on each place of a side of the canvas, (length,)."""
    total = numpy.zeros(length, numpy.float32)
    for place in places:
        total[place:place + len(window)] += window
    return total
