"""What a model folder says of its chains: sizes, question, experts, sampling. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realsr_r1.chain.text import PROBLEM
from realsr_r1.core.errors import UserError

SETTINGS_FILE = "chain_settings.json"
CHOICES = {"fit": ("crop", "stretch"), "color_fix": ("none", "wavelet")}


@dataclass(frozen=True)
class ChainSettings:
    """What a model folder says of its chains (`chain_settings.json`).

    `target_px`: input photos and final images are fitted to about target_px^2 pixels; `grid_unit_px`: pixels a size
    unit (32 in Lumina and PURE); `fit`: "crop" keeps the shape of a photo as far as whole units allow (Lumina-mGPT's
    rule), "stretch" makes it target_px x target_px (PURE's inference); `color_fix`: "wavelet" gives a restored photo the
    colours of the input (as PURE's inference does), "none" leaves the policy's; `problem`: the question; `experts`:
    default experts of the generation reward; `sampling`: fields of `RolloutConfig` that `restore` uses.
    """

    target_px: int = 512
    grid_unit_px: int = 32
    fit: str = "crop"
    color_fix: str = "none"
    problem: str = PROBLEM
    experts: tuple[str, ...] = ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> ChainSettings:
        """Check keys and values; raises `UserError` naming the one at fault and `source`."""
        if not isinstance(values, Mapping):
            raise UserError(f"{source} must hold `key: value` lines of chain settings")
        kinds = {"target_px": int, "grid_unit_px": int, "fit": str, "color_fix": str, "problem": str, "experts": Sequence,
                 "sampling": Mapping}
        for key, value in values.items():
            if key not in kinds:
                raise UserError(f"{source}: unknown chain setting {key!r}; known are {', '.join(sorted(kinds))}")
            if not isinstance(value, kinds[key]) or isinstance(value, str) != (kinds[key] is str):
                raise UserError(f"{source}: chain setting {key} is {value!r}, which is no {kinds[key].__name__.lower()}")
        settings = cls(**{**values, **({"experts": tuple(values["experts"])} if "experts" in values else {})})
        for key, choices in CHOICES.items():
            if getattr(settings, key) not in choices:
                raise UserError(f"{source}: {key} is {getattr(settings, key)!r}; it must be one of {', '.join(choices)}")
        if min(settings.target_px, settings.grid_unit_px) < 1:
            raise UserError(f"{source}: target_px and grid_unit_px must be at least 1")
        return settings
