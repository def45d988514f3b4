"""A perceptual hash of photos, and which photos look alike.

The hash is the usual one of 64 bits from the lowest frequencies of the grey photo at 32x32 px, each against their median
(C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): it survives scaling, compression and
small changes of brightness, but not cropping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from realsr_r1.data.photos import decode
from realsr_r1.data.processes import run_all
from realsr_r1.data.sources import Photo
from realsr_r1.errors import UserError
from realsr_r1.files import escaped, read_json, write_json

SIDE, FREQUENCIES = 32, 8
MOST_BITS = 8  # of 64 that may differ between near-duplicates
# Measured on the quick start's 16 photos: copies (JPEG quality 30, a quarter of the size, 15 % brighter, gamma 0.8) differ in at
# most 4 bits, different photos in at least 20. A copy that lost 2 % at each side differs in 6 at the median, in 20 at most.
BATCH = 64  # photos hashed by a process at a time


def perceptual_hash(image: Image.Image) -> int:
    """64 bits."""
    from scipy.fft import dctn

    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    lowest = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()
    bits = lowest > np.median(lowest[1:])  # without the mean brightness, which is larger than all
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class Hashes:
    """Photos' names and hashes. `unread`: number of a photo that can't be read, among those that were given -> why."""

    names: list[str] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    unread: dict[int, str] = field(default_factory=dict)

    def like(self, image: Image.Image) -> str | None:
        """The name of the photo among these that `image` is a near-duplicate of, if there is one."""
        if not self.names:
            return None
        differing = np.bitwise_count(np.array(self.hashes, dtype=np.uint64) ^ np.uint64(perceptual_hash(image)))
        nearest = int(differing.argmin())
        return self.names[nearest] if differing[nearest] <= MOST_BITS else None

    def twins(self) -> dict[str, str]:
        """Photos that are near-duplicates of an earlier one of these, and that one."""
        hashes = np.array(self.hashes, dtype=np.uint64)
        found: dict[str, str] = {}
        for number, name in enumerate(self.names):
            if name not in found:
                near = np.flatnonzero(np.bitwise_count(hashes[number + 1:] ^ hashes[number]) <= MOST_BITS) + number + 1
                for other in near:
                    found.setdefault(self.names[other], name)
        return found


def hash_photos(photos: Sequence[Photo], folder: Path, processes: int) -> Hashes:
    """The hashes of those photos that can be read, in their order. They are kept in `folder`, and found again there."""
    batches = [_Batch(tuple(photos[start:start + BATCH]), folder / f"hashes-{start:08d}.json")
               for start in range(0, len(photos), BATCH)]
    missing = [batch for batch in batches if not batch.file.is_file()]
    run_all(((batch, len(batch.photos)) for batch in missing), min(processes, len(missing)), len(photos),
            len(photos) - sum(len(batch.photos) for batch in missing), "photos compared")
    found = [pair for batch in batches for pair in read_json(batch.file)]
    return Hashes([photo.name for photo, (bits, _) in zip(photos, found, strict=True) if bits is not None],
                  [bits for bits, _ in found if bits is not None],
                  {number: why for number, (bits, why) in enumerate(found) if bits is None})


@dataclass(frozen=True)
class _Batch:
    """Hashes some photos into a file, called in any process: a list of (bits, None), or (None, why not)."""

    photos: tuple[Photo, ...]
    file: Path

    def __call__(self) -> None:
        hashes: list[tuple[int | None, str | None]] = []
        for photo in self.photos:
            try:
                hashes.append((perceptual_hash(decode(photo)), None))
            except UserError as error:
                hashes.append((None, escaped(str(error))))
        write_json(self.file, hashes)
