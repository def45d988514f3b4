"""Photos to try the page on: scikit-image's, degraded as training degrades them.

They come with the package that is installed anyway, so nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

EXAMPLES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
SHORTER_SIDE = 144  # px: a CPU takes seconds for it
SEED = 3


def write_examples(folder: Path) -> list[Path]:
    """Write the degraded photos into `folder` and return their paths."""
    import skimage
    from PIL import Image

    from realsr_r1.core.images import load_image
    from realsr_r1.data.degradation.config import DegradationConfig
    from realsr_r1.data.degradation.degrade import degrade

    source = Path(skimage.__file__).parent / "data"
    paths = []
    for name in EXAMPLES:
        if not (source / name).is_file():
            continue
        photo = load_image(source / name)
        size = tuple(round(side * SHORTER_SIDE / min(photo.size)) for side in photo.size)
        photo = photo.resize(size, Image.Resampling.LANCZOS)
        degraded = degrade(photo, SEED, name, DegradationConfig(scale=1))
        paths.append(folder / f"{Path(name).stem}.png")
        degraded.image.save(paths[-1])
    return paths
