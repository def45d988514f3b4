"""Sizes and places: how large a restored photo is, and which tiles it is written in.

Knows widths and heights in px, and how a picture is brought to a size. Knows no model: what is in a
tile is written elsewhere (`realsr_r1.restoring.writing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import OFFSETS, scale_to, scale_to_cover, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.chain.settings import ChainSettings

MOST_PIXELS = 2**30  # of a result, which takes three bytes for each, several times
Box = tuple[int, int, int, int]  # left, top, right, bottom in px


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover a canvas.

    `canvas`, `tile`: (width, height) in px; a tile is nowhere larger than the canvas. `lefts`,
    `tops`: where columns and rows of tiles begin, ascending. `overlap`: px that neighbours share
    on average or more; over so many px, where there are so many, the weight of a tile rises from
    its border.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    overlap: int

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def boxes(self) -> Iterator[Box]:
        """Yield the places of the tiles, row by row."""
        width, height = self.tile
        for top in self.tops:
            for left in self.lefts:
                yield left, top, left + width, top + height

    def at_share(self, tile: tuple[int, int]) -> Tiling:
        """Return the same tiling for tiles that were written in another size, `tile`."""
        if tile == self.tile:
            return self

        def scaled(places: tuple[int, ...], axis: int) -> tuple[int, tuple[int, ...]]:
            share = tile[axis] / self.tile[axis]
            # Halves go up everywhere, so that neighbours which touch still do.
            begins = tuple(int(place * share + 0.5) for place in places)
            return begins[-1] + tile[axis], begins

        (width, lefts), (height, tops) = scaled(self.lefts, 0), scaled(self.tops, 1)
        return Tiling((width, height), tile, lefts, tops, round(self.overlap * tile[0] / self.tile[0]))


@dataclass(frozen=True)
class Plan:
    """How a photo is restored.

    `picture`: the photo in RGB at the size of the result, which is also the reference of the
    colours. `fitted`: the whole photo as the policy sees it, from which the words are written.
    `canvas`: the picture that the tiles are cut from. `tiling`: its tiles; None where the image
    that is written for `fitted` is the result. `whole`: the number of the tile that `fitted` is;
    then the further tiles only add what fitting the photo has cut off. None where all are further
    ones. `crop`: (width, height) of the part of the canvas, from its left top, that is the
    picture; the rest is mirrored to fill a tile.
    """

    picture: Image
    fitted: Image
    canvas: Image
    tiling: Tiling | None
    whole: int | None
    crop: tuple[int, int]


def result_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return `size` (width, height) times `scale`, rounded, and at least 1 px each.

    Raises `UserError` for a scale that is no number above 0, and for a result beyond all memories.
    """
    if not 0 < scale < math.inf:
        raise UserError(f"scale is {scale}; it must be a number above 0")
    width, height = (max(1, round(min(side * scale, MOST_PIXELS + 1))) for side in size)
    if width * height > MOST_PIXELS:
        raise UserError(f"the result would have {width:,} x {height:,} px; at most {MOST_PIXELS / 1e6:,.0f} "
                        "million are restored: take a smaller --scale")
    return width, height


def tile_and_overlap(tile: int | None, overlap: int | None, settings: ChainSettings,
                     largest: int) -> tuple[int, int]:
    """Return the side of a tile and the overlap in px; by default the model's size and an eighth.

    `largest`: the most grid units that a side of an image can have. Raises `UserError` for a tile
    that the policy has no size for, and for an overlap that is no part of it.
    """
    unit = settings.grid_unit_px
    if tile is None:
        tile = settings.target_px // unit * unit
    if tile < unit or tile % unit or tile // unit > largest:
        raise UserError(f"--tile {tile} must be a multiple of this model's grid unit of {unit} px, and at "
                        f"most {largest * unit}")
    overlap = tile // 8 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise UserError(f"--overlap {overlap} must be at least 0 and less than the tile's {tile} px")
    return tile, overlap


def plan_photo(photo: Image, fitted_of: Callable[[Image], Image], settings: ChainSettings, scale: float,
               tile: int, overlap: int, can_tile: bool) -> Plan:
    """Return how to restore `photo` at `scale`.

    `fitted_of`: makes the policy's view of a picture (`ChainProcessor.fit`). A result of at most
    target_px^2 pixels is written as one image. Where fitting the photo to whole grid units cuts
    something off, further tiles write that. A larger result is cut into tiles of `tile` px that
    share `overlap` px or more (see `spread`). Without `can_tile` everything is one image.
    """
    picture = scale_to(to_rgb(photo), result_size(photo.size, scale))
    fitted, size = fitted_of(picture), picture.size
    if not can_tile:
        return Plan(picture, fitted, picture, None, None, size)
    if size[0] * size[1] > settings.target_px**2:
        canvas = mirrored(picture, (max(size[0], tile), max(size[1], tile)))
        tiling = Tiling(canvas.size, (tile, tile), spread(canvas.width, tile, overlap),
                        spread(canvas.height, tile, overlap), overlap)
        return Plan(picture, fitted, canvas, tiling, None, size)
    if settings.fit == "stretch":
        return Plan(picture, fitted, picture, None, None, size)
    canvas = scale_to_cover(picture, fitted.size)
    if canvas.size == fitted.size:
        return Plan(picture, fitted, picture, None, None, size)
    left, top = OFFSETS[settings.fit](canvas, fitted.size)  # where fitting the photo has cropped it
    places = [spread(length, side, min(overlap, side - 1), begin) for length, side, begin in
              zip(canvas.size, fitted.size, (left, top), strict=True)]
    tiling = Tiling(canvas.size, fitted.size, *places, min(overlap, *(side - 1 for side in fitted.size)))
    whole = places[1].index(top) * len(places[0]) + places[0].index(left)
    return Plan(picture, fitted, canvas, tiling, whole, canvas.size)


def spread(length: int, tile: int, overlap: int, through: int | None = None) -> tuple[int, ...]:
    """Return where tiles begin that cover `length` px evenly and share `overlap` px or more.

    There are as few as possible; on average neighbours share at least half a pixel less than
    `overlap`. With `through` one more begins there, unless one does already.
    """
    gaps = math.ceil((length - tile) / min(tile, tile - overlap + 0.5))
    places = {round(number * (length - tile) / gaps) for number in range(gaps + 1)} if gaps else {0}
    return tuple(sorted(places | ({through} if through is not None else set())))


def mirrored(picture: Image, size: tuple[int, int]) -> Image:
    """Return `picture` filled up to `size` (width, height) at its right and bottom, mirrored."""
    if picture.size == size:
        return picture
    import numpy
    from PIL import Image

    missing = [(0, wanted - side) for wanted, side in zip(size[::-1], picture.size[::-1], strict=True)]
    return Image.fromarray(numpy.pad(numpy.asarray(picture), [*missing, (0, 0)], mode="symmetric"))
