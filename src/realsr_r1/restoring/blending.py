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

    A pixel is the mean of the tiles that cover it, weighted as `weights` says for columns and for
    rows. The sums are kept in float32 for the rows of one tile; rows that no later tile reaches
    become bytes at once. `tiling`: the places of the tiles in their own size.
    """

    def __init__(self, tiling: Tiling):
        self.tiling = tiling
        (width, height), (tile_width, tile_height) = tiling.canvas, tiling.tile
        across, down = weights(tiling.lefts, tile_width, tiling.overlap), weights(tiling.tops, tile_height,
                                                                                 tiling.overlap)
        self._places = ((left, top, row[:, None, None] * column[:, None])
                        for top, row in zip(tiling.tops, down, strict=True)
                        for left, column in zip(tiling.lefts, across, strict=True))
        self._sums = numpy.zeros((tile_height, width, 3), numpy.float32)  # of the rows from `_top` on
        self._top = 0
        self._pixels = numpy.empty((height, width, 3), numpy.uint8)

    def add(self, tile: Image) -> None:
        """Add the next tile, in the order of `Tiling.boxes`; one of another size is scaled."""
        left, top, weight = next(self._places)
        self._finish_to(top)
        pixels = numpy.asarray(scale_to(tile, self.tiling.tile), dtype=numpy.float32)
        self._sums[:, left:left + pixels.shape[1]] += pixels * weight

    def picture(self) -> Image:
        """Return the picture; call it once, when all tiles were added."""
        from PIL import Image

        self._finish_to(self.tiling.canvas[1])
        return Image.fromarray(self._pixels)

    def _finish_to(self, top: int) -> None:
        """Turn the sums of all rows above `top` into pixels."""
        count = top - self._top
        if count:
            self._pixels[self._top:top] = self._sums[:count].round().clip(0, 255)
            self._sums[:-count] = self._sums[count:].copy()
            self._sums[-count:] = 0
            self._top = top


def weights(places: tuple[int, ...], side: int, overlap: int) -> numpy.ndarray:
    """Return the weights along one side of each tile, (tiles, side) float32.

    Where two tiles overlap, one passes into the other in the middle, by a raised cosine over
    `overlap` px (fewer where they share less or the next transition is nearer). On every pixel the
    weights of all tiles sum up to 1. `places`: where the tiles begin, ascending.
    """
    steps = numpy.diff(places)
    ramp = max(1, min(overlap, side - steps.max(), steps.min())) if len(steps) else 1

    def share_beyond(border: int, place: int) -> numpy.ndarray:
        """The share, on the pixels of the tile at `place`, of all tiles from number `border` on."""
        if border in (0, len(places)):
            return numpy.full(side, float(border == 0))
        middle = (places[border] + places[border - 1] + side) / 2
        along = (numpy.arange(side) + 0.5 + place - middle) / ramp
        return (1 + numpy.sin(numpy.pi * along.clip(-0.5, 0.5))) / 2

    return numpy.stack([share_beyond(number, place) - share_beyond(number + 1, place)
                        for number, place in enumerate(places)]).astype(numpy.float32)
