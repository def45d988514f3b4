"""A photo in tiles: what they are given, and how what was written for them becomes whole images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from realsr_r1.restoring.blending import Blender
from realsr_r1.restoring.writing import Answer, Row, Writer

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.restoring.options import RestoreOptions
    from realsr_r1.restoring.picking import Judge
    from realsr_r1.restoring.restoration import Progress
    from realsr_r1.restoring.sizes import Box, Plan


def write_tiles(writer: Writer, plan: Plan, whole: Answer, place: int, options: RestoreOptions,
                judge: Judge | None, progress: Progress | None
                ) -> tuple[Image, dict[str, Image], list[tuple[Box, str]], list[tuple[float, ...]]]:
    """Write the tiles of `plan`, and put their images together.

    `whole`: the answer for the whole photo, whose words all tiles are given where they are shared,
    and which is itself the tile `plan.whole`. `place`: the photo's place among the photos. Returns
    the last image, all images by section (where `plan.whole` is None), the place and the text of
    each tile, and the scores of each tile's candidates.
    """
    processor, tiling = writer.processor, plan.tiling
    given = _texts(writer, whole) if options.tile_text == "shared" else None
    rows = [Row(partial(plan.canvas.crop, box), place, number) for number, box in enumerate(tiling.boxes())
            if number != plan.whole]
    answers = writer.write(rows, options.candidates, judge, given)
    names = [section.name for section in processor.chain.images]
    blenders: dict[str, Blender] = {}
    texts, scores = [], []
    for number, box in enumerate(tiling.boxes()):
        answer = whole if number == plan.whole else next(answers)
        pictures = dict(zip(names, answer.images, strict=True))
        for name in names if plan.whole is None else names[-1:]:
            if name not in blenders:
                blenders[name] = Blender(tiling.at_share(pictures[name].size))
            blenders[name].add(pictures[name])
        texts.append((box, answer.text))
        scores.append(answer.scores)
        if progress and number != plan.whole:
            progress(0, 1)
    images = {name: _without_mirror(blender.picture(), plan) for name, blender in blenders.items()}
    return images[names[-1]], images, texts, scores


def _texts(writer: Writer, whole: Answer) -> Sequence[Sequence[int]]:
    """Return the ids of the texts of a whole chain."""
    sections, bodies = writer.processor.chain.sections, writer.processor.layout.chain_bodies(whole.ids)
    return [ids for section, ids in zip(sections, bodies, strict=True) if not section.is_image]


def _without_mirror(image: Image, plan: Plan) -> Image:
    """Crop the part of an image that the picture is; the image may be smaller than the canvas."""
    if plan.crop == plan.canvas.size:
        return image
    width, height = (max(1, round(side * own / canvas)) for side, own, canvas in
                     zip(plan.crop, image.size, plan.canvas.size, strict=True))
    return image.crop((0, 0, width, height))
