"""Settings of a rollout, in one place: defaults, help texts and checks.

GRPO, restore and samples take them from here. Knows no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.schema import checked, fields_of

GRAMMARS = ("image", "chain", "rows")
INT8 = "int8"
CACHE_DTYPES = ("auto", INT8)
# No memory holds more, and a slip of the finger shouldn't be found out after an hour.
MOST = {"num_generations": 2**16, "max_new_tokens": 2**20, "max_text_tokens": 2**20, "jacobi": 2**12,
        "text_top_k": 2**31, "image_top_k_min": 2**31, "image_top_k_max": 2**31, "seed": 2**63}


def _setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": text, **({"choices": list(choices)} if choices else {})})


@dataclass
class RolloutConfig:
    """How completions are sampled. Raises `UserError` that names a field with a value out of range.

    Defaults are the published code's, with three exceptions. The text top-k is Lumina-mGPT's: with
    the published 1, all completions of a group would write the same text, and the text's rewards
    would teach nothing. The grammar is "image"; the published code's is "rows", which lets a policy
    open images that have no size or no room. `max_text_tokens` belongs to the grammar "chain",
    which the published code doesn't have.
    """

    num_generations: int = _setting(5, "Completions for each prompt (G), at least 1.")
    max_new_tokens: int = _setting(7000, "Longest completion in tokens, its end-of-turn included.")
    temperature: float = _setting(0.9, "Divides the scores after top-k when a token is drawn; above 0. "
                                       "(GRPO's loss has a temperature of its own.)")
    guidance_scale: float = _setting(0.8, "Classifier-free guidance inside images: uncond + scale * (cond - "
                                          "uncond); 1 = none.")
    text_top_k: int = _setting(10, "How many of the likeliest tokens may be drawn in text and for sizes "
                                   "(Lumina-mGPT: 10, published code: 1); ties are kept.")
    image_top_k_min: int = _setting(1, "Top-k of image codes: k_min + (k_max - k_min) * sigmoid(H - 5), "
                                       "where H is the entropy in nats, at most 10. This is k_min; 1 and "
                                       "2,000 give 14 at 0 nats and 1,987 at 10.")
    image_top_k_max: int = _setting(2000, "k_max of image codes, see image_top_k_min.")
    grammar: str = _setting(
        "image", "image: images have a size that fits, and their tokens stand nowhere else; chain: the "
                 "whole chain is forced, so every completion is well formed; rows: only the rows of an image "
                 "are, as in the published code: text and sizes may be any token, and sizes are drawn as "
                 "codes are.",
        GRAMMARS)
    image_sizes: Sequence[Sequence[int]] | None = _setting(
        None, "With grammar chain: (rows, columns) in grid units of each image of the chain, in order; by "
              "default they follow from the prompt's last image.")
    max_text_tokens: int = _setting(256, "With grammar chain: the most tokens of a text section, without its "
                                         "closing tag.")
    jacobi: int = _setting(1, "Tokens of a row that one forward pass takes inside images (Speculative Jacobi "
                              "Decoding): fewer passes, and other completions of the same distribution; 0 or "
                              "1: one after another; try 8.")
    cache_dtype: str = _setting(
        "auto", "Type of the keys and values that rollouts keep. auto: the policy's; int8: for a 7B half of "
                "bfloat16's memory, a little less exact, and slower without the GPU's kernels.", CACHE_DTYPES)
    cuda_graphs: bool = _setting(False, "Record the policy's steps as CUDA graphs: less time between kernels "
                                        "where Python is the slowest part; changes only the time, and only "
                                        "on CUDA.")
    seed: int = _setting(0, "Seed of the random numbers, which depend only on (seed, step, row, position).")

    def __post_init__(self) -> None:
        for name in ("num_generations", "max_new_tokens", "text_top_k", "image_top_k_min"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_text_tokens", "jacobi", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at most {most}")
        if self.image_top_k_max < self.image_top_k_min:
            raise UserError(f"image_top_k_max {self.image_top_k_max} is smaller than image_top_k_min "
                            f"{self.image_top_k_min}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be above 0 (for the likeliest "
                            "tokens set the top-k settings to 1)")
        if not -float("inf") < self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale is {self.guidance_scale}; it must be a finite number (1 is no "
                            "guidance)")
        if self.grammar not in GRAMMARS:
            raise UserError(f"grammar is {self.grammar!r}; it must be one of {', '.join(GRAMMARS)}")
        if self.cache_dtype not in CACHE_DTYPES:
            raise UserError(f"cache_dtype is {self.cache_dtype!r}; it must be one of "
                            f"{', '.join(CACHE_DTYPES)}")
        if self.image_sizes is not None and not (len(self.image_sizes) and all(
                len(size) == 2 and min(size) >= 1 for size in self.image_sizes)):
            raise UserError(f"image_sizes is {self.image_sizes}; it must be one (rows, columns) pair in grid "
                            "units for each image of the chain")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str, **flags: Any) -> RolloutConfig:
        """Return the sampling settings of a model folder, with `flags` in their place where given.

        A flag that is None was not given, so the folder's value counts. `source`: where `settings`
        come from. Raises `UserError` for a key that is no field and for bad values; it names the
        source where the fault is there.
        """
        settings = checked(fields_of(cls), settings, f"{source}: sampling")
        try:
            cls(**settings)
        except UserError as error:
            raise UserError(f"{source}: bad sampling settings: {error}") from error
        return cls(**{**settings, **{name: value for name, value in flags.items() if value is not None}})


def rollout_field(name: str) -> Any:
    """Repeat a field of `RolloutConfig` in another dataclass: default, help and choices."""
    setting = _field(name)
    return field(default=setting.default, metadata=dict(setting.metadata))


def add_rollout_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag `--NAME` for each of these fields of `RolloutConfig`.

    A flag that isn't given is None, and `RolloutConfig.from_settings` then takes the value from a
    model folder's chain settings.
    """
    for name in names:
        setting = _field(name)
        text = setting.metadata["help"].replace("%", "%%") + " (default: the model folder's chain settings)"
        if setting.type == "bool":
            parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
        else:
            kind = {"int": int, "float": float, "str": str}[setting.type]
            parser.add_argument(f"--{name}", type=kind, help=text, choices=setting.metadata.get("choices"))


def _field(name: str) -> Field:
    return next(item for item in fields(RolloutConfig) if item.name == name)
