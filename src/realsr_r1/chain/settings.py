"""What a model folder says about its chains: the chain itself, sizes, experts and sampling.

Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from realsr_r1.chain.spec import ChainSpec, SettingsFile
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import checked

SETTINGS_FILE = "chain_settings.json"


@dataclass(frozen=True)
class ChainSettings:
    """The settings of a model folder's chains (`chain_settings.json`).

    `target_px`: input photos and final images get about target_px^2 pixels. `grid_unit_px`: pixels
    of one size unit (32 in Lumina and PURE). `fit`: "crop" keeps the shape of a photo as far as
    whole units allow, and cuts its centre out; "random_crop" does the same, and cuts at a place
    that is drawn (the published code, and Lumina-mGPT's); "stretch" makes it target_px x target_px
    (PURE's inference). `pixels`: decoded values are "rounded" to 8 bits, or "cut" (the published
    code), which makes an image darker by half a step of 255. `color_fix`: what gives a restored
    photo the colours of the input: "wavelet" (as PURE's inference), "adain" or "none", which leaves
    the policy's colours. `fidelity`: the input's share in a restored photo, from 0 to 1. `chain`:
    what the policy is asked and writes (`problem` and `sections` in files). `experts`: the default
    experts of the generation reward. `sampling`: fields of `RolloutConfig` that `restore` uses.
    """

    target_px: int = 512
    grid_unit_px: int = 32
    fit: str = "crop"
    pixels: str = "rounded"
    color_fix: str = "none"
    fidelity: float = 0.0
    chain: ChainSpec = field(default_factory=ChainSpec.published)
    experts: tuple[str, ...] = ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str,
                  default: ChainSettings | None = None) -> ChainSettings:
        """Check keys and values, and take what is missing from `default`.

        Raises `UserError` that names the key at fault and `source`.
        """
        default = default or cls()
        values = checked(SettingsFile, values, source)
        chain = ChainSpec.from_dict(values, source, default.chain)
        plain = {key: value for key, value in values.items() if key not in ("problem", "sections")}
        if "experts" in plain:
            plain["experts"] = tuple(plain["experts"])
        return replace(default, **plain, chain=chain)

    @classmethod
    def read(cls, path: str | Path, flag: str | None = None,
             default: ChainSettings | None = None) -> ChainSettings:
        """Read the settings in a YAML or JSON file, and take what is missing from `default`.

        `flag`: the flag that names the file, for messages. Raises `UserError` for a file that can't
        be used.
        """
        return cls.from_dict(read_yaml(path, SettingsFile, flag), str(path), default)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` makes the same settings."""
        return {"target_px": self.target_px, "grid_unit_px": self.grid_unit_px, "fit": self.fit,
                "pixels": self.pixels, "color_fix": self.color_fix, "fidelity": self.fidelity,
                **self.chain.to_dict(), "experts": list(self.experts), "sampling": dict(self.sampling)}

    def asking(self, question: str) -> ChainSettings:
        """Return the same settings with another question."""
        return replace(self, chain=replace(self.chain, question=question))


def question_in(path: str | Path | None) -> str | None:
    """The question that a file given by --chain_settings asks;

    None without a file, or without one in it.
    """
    return None if path is None else read_yaml(path, SettingsFile, "--chain_settings").get("problem")
