"""Finds photos that look alike, by a perceptual hash.

The hash is the usual one of 64 bits (C. Zauner, "Implementation and benchmarking of perceptual
image hash functions", 2010). The grey photo is scaled to 32x32 px; each of its 64 lowest
frequencies gives one bit, which says whether it is above their median. The hash survives scaling,
compression and small changes of brightness, but not cropping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.processes import run_all
from realsr_r1.core.schema import Ge, Le, Len, Text
from realsr_r1.core.texts import escaped
from realsr_r1.data.photos.decoding import decode
from realsr_r1.data.photos.sources import Photo

SIDE, FREQUENCIES = 32, 8
MOST_BITS = 8  # of the 64 may differ between near-duplicates
# Measured on the quick start's 16 photos: copies (JPEG quality 30, a quarter of the size, 15%
# brighter, gamma 0.8) differ in at most 4 bits, different photos in at least 20. A copy that lost
# 2% at each side differs in 6 bits at the median and in 20 at most.
BATCH = 64  # photos hashed by a process at a time

Open = Callable[[Photo], Image.Image]
# Of a photo in a file of hashes: (bits, pixels, None), or (None, None, reason).
Entry = Annotated[list[Annotated[int, Ge(0), Le(2**64)] | Text | None], Len(3, 3)]


def perceptual_hash(image: Image.Image) -> int:
    """The hash of an image, as a number of 64 bits."""
    from scipy.fft import dctn

    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    lowest = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()
    bits = lowest > np.median(lowest[1:])  # [0] is the mean brightness, much larger than the others
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class Hashes:
    """The names, hashes and numbers of pixels of photos.

    `unread`: for each given photo that could not be hashed, its number among the given ones -> the
    reason.
    """

    names: list[str] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    unread: dict[int, str] = field(default_factory=dict)

    def like(self, image: Image.Image) -> str | None:
        """The name of the photo in here that `image` is a near-duplicate of, or None."""
        if not self.names:
            return None
        differing = np.bitwise_count(
            np.array(self.hashes, dtype=np.uint64) ^ np.uint64(perceptual_hash(image)))
        nearest = int(differing.argmin())
        return self.names[nearest] if differing[nearest] <= MOST_BITS else None

    def twins(self) -> dict[str, str]:
        """For each photo that looks like another one in here, the name of that other one.

        Of photos that look alike the largest stays, or the first of those with the same size; it is
        the value, and the others are keys.
        """
        hashes = np.array(self.hashes, dtype=np.uint64)
        found: dict[str, str] = {}
        for number in sorted(range(len(self.names)), key=lambda number: (-self.pixels[number], number)):
            name = self.names[number]
            if name not in found:
                for other in np.flatnonzero(np.bitwise_count(hashes ^ hashes[number]) <= MOST_BITS):
                    if other != number:
                        found.setdefault(self.names[other], name)
        return found


def hash_photos(photos: Sequence[Photo], folder: Path, processes: int,
                opener: Callable[[Sequence[Photo]], Open] | None = None
                ) -> Hashes:
    """The hashes of those photos that can be opened, in the order of `photos`.

    Hashes are written to files in `folder`, and a later call reads them from there.
    `opener(photos)` returns the function that opens these photos in another process, and that
    raises `UserError` for one which can't be used; by default all photos are opened with `decode`.
    """
    batches = [tuple(photos[start:start + BATCH]) for start in range(0, len(photos), BATCH)]
    files = [folder / f"hashes-{number * BATCH:08d}.json" for number in range(len(batches))]
    missing = [(batch, file) for batch, file in zip(batches, files, strict=True) if not file.is_file()]
    calls = ((_Batch(batch, opener(batch) if opener else decode, file), len(batch))
             for batch, file in missing)
    run_all(calls, min(processes, len(missing)), len(photos),
            len(photos) - sum(len(batch) for batch, _ in missing),
            "photos", "looking for copies")
    found = [entry for file in files for entry in read_json(file, list[Entry])]
    good = [(photo.name, bits, pixels) for photo, (bits, pixels, _) in zip(photos, found, strict=True)
            if bits is not None]
    return Hashes([name for name, _, _ in good], [bits for _, bits, _ in good],
                  [pixels for _, _, pixels in good],
                  {number: why for number, (bits, _, why) in enumerate(found) if bits is None})


@dataclass(frozen=True)
class _Batch:
    """A call, to be made in any process, that hashes some photos and writes the result to a file.

    The file holds (bits, pixels, None) for each photo, or (None, None, reason).
    """

    photos: tuple[Photo, ...]
    open: Open
    file: Path

    def __call__(self) -> None:
        hashes: list[tuple[int | None, int | None, str | None]] = []
        for photo in self.photos:
            try:
                image = self.open(photo)
                hashes.append((perceptual_hash(image), image.width * image.height, None))
            except UserError as error:
                hashes.append((None, None, escaped(str(error))))
        write_json(self.file, hashes)
