"""Branching: of the candidates that wrote an image, only those that the judge likes best go on.

A list like 4, 2, 1 says how many candidates of a picture write the first image, the second, the
third. All begin together and share their prompt; after an image the worst end there, so nothing is
computed twice, and a candidate that goes on is what it would be without its rivals. An image is
judged at its own size, against the input scaled to it. Knows pictures and scores; how rows leave
the batch is the rollout engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.images import scale_to
from realsr_r1.restoring.picking import Judge, best_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.chain.spec import ChainSpec


def check_branch(branch: Sequence[int], chain: ChainSpec, grammar: str) -> None:
    """Raise `UserError` where a model can't branch so: its chain has another number of images.

    With the grammar "image" an answer may have any number of images.
    """
    given = ",".join(map(str, branch))
    if grammar != "chain":
        raise UserError(f"--branch {given} needs --grammar chain")
    if len(branch) != len(chain.images):
        names = ", ".join(section.label for section in chain.images)
        raise UserError(f"--branch {given} has {len(branch)} numbers; this model's chain has "
                        f"{len(chain.images)} images ({names}), and each takes one")


class Branching:
    """The choices of one batch, as `RolloutEngine.generate` asks for them.

    `candidates`: how many of a picture write each image, not rising. `views`: the input of each
    prompt. `decode`: turns the ids of an image into the image.
    """

    def __init__(self, candidates: Sequence[int], views: Sequence[Image], judge: Judge,
                 decode: Callable[[Sequence[int]], Image]):
        self.candidates, self.views, self.judge, self.decode = candidates, views, judge, decode

    def __call__(self, prompt: int, image: int, written: Mapping[int, Sequence[int]]) -> list[int]:
        """Return which of the candidates that wrote image number `image` write the next one too."""
        count = self.candidates[min(image + 1, len(self.candidates) - 1)]
        if count >= len(written):
            return list(written)
        images = [self.decode(ids) for ids in written.values()]
        scores = self.judge(images, scale_to(self.views[prompt], images[0].size))
        return [list(written)[number] for number in best_of(scores, count)]
