"""The images of one photo that are scored: restored, degraded and flat ones, each with its original.

Brings all of them to one size and region. Which regions there are is in regions.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import load_image
from realsr_r1.measuring.regions import find_way, same_shape

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.measuring.pairing import Triple

LQ, MEAN_COLOUR, RESTORED = "LQ input", "mean colour", "restored"  # names of rows

Pairs = dict[str, "tuple[Image, Image]"]  # name of a row -> (image, what it is compared with), of one size


def load_pairs(triple: Triple, resize: bool, border: int) -> Pairs:
    """Return the images of a photo by row name, and note in `triple` how they were brought together.

    A restored image must have the original's size, unless `resize` is true: then it is resized to
    it (bicubic), and where it shows a part of the original, all are cut to that part and have its
    size. The LQ image is always resized to the original's size (bicubic). Without an original each
    image keeps its own size, and stands for its original. `border`: px cut off at each side of every
    image. Raises `UserError` where a file can't be read or compared.
    """
    pairs = _without_original(triple) if triple.gt is None else _with_original(triple, resize)
    if border:
        pairs = {row: (_inside(image, border, triple.name), _inside(original, border, triple.name))
                 for row, (image, original) in pairs.items()}
    triple.sizes = tuple(image.size for image, _ in pairs.values())
    return pairs


def _without_original(triple: Triple) -> Pairs:
    files = {**({LQ: triple.lq} if triple.lq else {}), **triple.restored}
    images = {row: load_image(path) for row, path in files.items()}
    return {row: (image, image) for row, image in images.items()}


def _with_original(triple: Triple, resize: bool) -> Pairs:
    from PIL import Image

    original = load_image(triple.gt)
    restored = {method: load_image(path) for method, path in triple.restored.items()}
    for method, image in restored.items():
        if image.size != original.size and not resize:
            raise UserError(
                f"{triple.restored[method]} is {image.width}x{image.height} px and {triple.gt} "
                f"{original.width}x{original.height} px; restore it at the original's size (restore "
                "--scale), let both be brought to one size with --resize, or leave it out with --skip_bad")
    triple.resized = any(image.size != original.size for image in restored.values())
    ways = {method: find_way(image, original, str(triple.restored[method]))
            for method, image in restored.items()}
    method, way = next(iter(ways.items()))
    cut = [other for other, found in ways.items() if not found.is_whole]
    if cut and len(ways) > 1:
        raise UserError(f"{triple.restored[cut[0]]} has another shape than {triple.gt}; methods are compared "
                        "on whole photos: evaluate it alone, or leave it out with --skip_bad")
    triple.region = None if way.is_whole else way.name
    reference = way.original(original)
    images = {MEAN_COLOUR: reference.resize((1, 1), Image.Resampling.BOX).resize(reference.size)}
    if triple.lq:
        lq, shown = load_image(triple.lq), restored[method].size
        if same_shape(lq.size, original.size):  # it shows what the original shows
            images[LQ] = way.original(lq.resize(original.size, Image.Resampling.BICUBIC))
        elif same_shape(lq.size, shown):  # or what the restored image shows
            images[LQ] = way.restored(lq.resize(shown, Image.Resampling.BICUBIC))
        else:
            raise UserError(f"{triple.lq} has another shape ({lq.width}x{lq.height} px) than "
                            f"{triple.restored[method]} and {triple.gt}; give the whole degraded photo, or "
                            "leave it out with --skip_bad")
    images |= {other: ways[other].restored(image) for other, image in restored.items()}
    return {row: (image, reference) for row, image in images.items()}


def _inside(image: Image, border: int, name: str) -> Image:
    if min(image.size) <= 2 * border:
        raise UserError(f"--crop_border {border} leaves nothing of {name} ({image.width}x{image.height} px); "
                        "give a smaller one, or leave the photo out with --skip_bad")
    return image.crop((border, border, image.width - border, image.height - border))
