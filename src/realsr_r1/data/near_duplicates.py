"""A perceptual hash of photos, and which photos look like one of those that are kept for evaluation.

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
from realsr_r1.data.sources import Photo
from realsr_r1.errors import UserError
from realsr_r1.files import read_json, write_json

SIDE, FREQUENCIES = 32, 8
MOST_BITS = 6  # of 64 that may differ between near-duplicates


def perceptual_hash(image: Image.Image) -> int:
    """64 bits."""
    from scipy.fft import dctn

    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    lowest = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()
    bits = lowest > np.median(lowest[1:])  # without the mean brightness, which is larger than all
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class Evaluation:
    """The evaluation photos' names and hashes."""

    names: list[str] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)

    def like(self, image: Image.Image) -> str | None:
        """The name of the evaluation photo that `image` is a near-duplicate of, if there is one."""
        if not self.names:
            return None
        differing = np.bitwise_count(np.array(self.hashes, dtype=np.uint64) ^ np.uint64(perceptual_hash(image)))
        nearest = int(differing.argmin())
        return self.names[nearest] if differing[nearest] <= MOST_BITS else None


def hash_once(photos: Sequence[Photo], cache: Path) -> Evaluation:
    """The hashes of the evaluation photos that can be read, kept in the file `cache`."""
    if not cache.is_file():
        hashes: list[tuple[str, int]] = []
        for photo in photos:
            try:
                hashes.append((photo.name, perceptual_hash(decode(photo))))
            except UserError:
                continue  # a test photo is rejected when its turn comes; of others there is nothing to compare
        write_json(cache, hashes)
    hashes = read_json(cache)
    return Evaluation([name for name, _ in hashes], [bits for _, bits in hashes])
