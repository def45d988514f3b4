"""Settings of a rollout: how many completions, how they are drawn, and what grammar they follow. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from realsr_r1.core.errors import UserError

GRAMMARS = ("image", "chain")


@dataclass
class RolloutConfig:
    """How completions are sampled. Raises `UserError` naming the field when a value makes no sense.

    Defaults are the published code's, except the text top-k, which is Lumina-mGPT's: with the published 1 all
    completions of a group write the same text, and the text's rewards teach nothing.

    Args:
        num_generations: completions a prompt (G), at least 1.
        max_new_tokens: tokens a completion, its end-of-turn included.
        temperature: divides the scores after top-k; above 0.
        guidance_scale: s of `uncond + s * (cond - uncond)` at image codes; 1.0 switches the unconditional branch off.
        text_top_k: how many of the likeliest tokens may be drawn in text and for sizes; ties are kept.
        image_top_k_min, image_top_k_max: top-k at image codes, from the first (sure) to the second (unsure) by entropy.
        grammar: "image" constrains image spans only; "chain" forces the whole chain: every completion is well formed.
        image_sizes: for "chain", (rows, columns) in grid units of the rough, middle and final image; None takes a
            quarter, a half and the whole of each side of the prompt's last image.
        max_text_tokens: for "chain", longest body of a text section, its closing tag not counted.
        jacobi: tokens of a row fed in one forward pass inside images (Speculative Jacobi Decoding); completions have the
            same distribution, but are others for a seed. 0 or 1: one after another.
        cuda_graphs: record the decoder's steps as CUDA graphs (`graphs`); changes nothing but the time, on CUDA only.
        seed: of the random numbers; a completion is a function of (seed, step, row, position).
    """

    num_generations: int = 5
    max_new_tokens: int = 7000
    temperature: float = 0.9
    guidance_scale: float = 0.8
    text_top_k: int = 10
    image_top_k_min: int = 1
    image_top_k_max: int = 2000
    grammar: str = "image"
    image_sizes: Sequence[Sequence[int]] | None = None
    max_text_tokens: int = 300
    jacobi: int = 1
    cuda_graphs: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_generations", "max_new_tokens", "text_top_k", "image_top_k_min"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_text_tokens", "jacobi"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.image_top_k_max < self.image_top_k_min:
            raise UserError(f"image_top_k_max {self.image_top_k_max} is smaller than image_top_k_min "
                            f"{self.image_top_k_min}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be above 0 (for the likeliest tokens set the "
                            "top-k settings to 1)")
        if not -float("inf") < self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale is {self.guidance_scale}; it must be a finite number (1 is no guidance)")
        if self.grammar not in GRAMMARS:
            raise UserError(f"grammar is {self.grammar!r}; it must be one of {', '.join(GRAMMARS)}")
        if self.image_sizes is not None and not (len(self.image_sizes) == 3 and all(
                len(size) == 2 and min(size) >= 1 for size in self.image_sizes)):
            raise UserError(f"image_sizes is {self.image_sizes}; it must be three (rows, columns) pairs in grid units")
