"""The format reward: is the completion one whole chain, as `realsr_r1.chain` defines it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import has_tags_in_order, parse_chain
from realsr_r1.rewards.reward import Reward, bound

if TYPE_CHECKING:
    from PIL import Image


def format_reward(completions: Sequence[str], images: Sequence[Sequence[Image.Image] | None] | None = None,
                  spec: ChainSpec | None = None, rule: str = "exact", **columns: Any) -> list[float]:
    """Return 1.0 for a well-formed chain of `spec` (by default the published one), else 0.0.

    `images`: the images of each completion. Where they are given, there must be exactly as many as
    the chain has, because text alone can't tell a decoded image from its written name. `rule`:
    with "lazy", whatever the images are, a text counts whose tags stand in order
    (`has_tags_in_order`), as in the published code.
    """
    spec = spec or ChainSpec.published()
    if rule == "lazy":
        return [float(has_tags_in_order(text, spec)) for text in completions]
    well_formed = [parse_chain(text, spec).is_well_formed for text in completions]
    if images is not None:
        well_formed = [good and len(own or ()) == len(spec.images)
                       for good, own in zip(well_formed, images, strict=True)]
    return [float(good) for good in well_formed]


FORMAT = Reward("format", None, lambda settings: (),
                lambda settings: bound(format_reward, spec=settings.chain, rule=settings.format_rule),
                ("format_rule",))
