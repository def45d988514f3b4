"""What may be asked of one restoration: fields, help texts, defaults and checks. Knows no torch."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from realsr_r1.chain.spec import COLOR_FIXES
from realsr_r1.core.errors import UserError
from realsr_r1.restoring.picking import AGREEMENT

MOST_CANDIDATES = 64  # of an image, of which one is taken
TILE_TEXTS = ("shared", "own")


def _numbers(text: str) -> list[int]:
    """Read numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--branch {text} must be whole numbers with commas between them, like "
                        "4,2,1") from None


def _option(default: Any, kind: Callable[[str], Any], text: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"type": kind, "help": text, "choices": choices})


@dataclass(frozen=True)
class RestoreOptions:
    """How a photo is restored. Raises `UserError` that names a field with a value out of range."""

    scale: float = _option(1.0, float, "Width and height of the result, as a multiple of the photo's; any "
                                       "number above 0 (default: 1).")
    tile: int | None = _option(None, int, "Side in px of the tiles of a photo that is larger than the "
                                          "model's images (default: the model's size).")
    overlap: int | None = _option(None, int, "Pixels that neighbouring tiles share at least (default: an "
                                             "eighth of a tile).")
    tile_text: str = _option("shared", str, "shared: the words are written once, on the whole photo, and "
                                            "given to every tile; own: each tile writes its own (default: "
                                            "shared).", TILE_TEXTS)
    color_fix: str | None = _option(None, str, "wavelet: the low frequencies of the photo; adain: the mean "
                                               "and spread of its channels; none: the model's colours "
                                               "(default: the model folder's setting).",
                                    COLOR_FIXES)
    fidelity: float | None = _option(None, float, "The photo's share in the result, from 0 (what the model "
                                                  "wrote) to 1 (the photo); 0 with --color_fix none "
                                                  "(default: the model folder's setting).")
    num_samples: int = _option(1, int, "Samples of each image or tile, of which the best is taken (default: "
                                       "1).")
    branch: Sequence[int] | None = _option(
        None, _numbers, "In place of --num_samples: how many candidates of each image or tile write each "
                        "image of the chain, not rising. 4,2,1 writes four rough images, of the best two "
                        "the middle ones, and of the best of these the final one (default: no branching).")
    pick: str | None = _option(None, str, f"Who judges samples and candidates: {AGREEMENT} with the input, "
                                          "or an expert that needs no original, by name or as "
                                          f"package.module:factory (default: {AGREEMENT}).")

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise UserError(f"--scale {self.scale} must be a number above 0")
        if self.fidelity is not None and not 0 <= self.fidelity <= 1:
            raise UserError(f"--fidelity {self.fidelity} must be a number from 0 to 1")
        if not 1 <= self.num_samples <= MOST_CANDIDATES:
            raise UserError(f"--num_samples {self.num_samples} must be at least 1, and at most "
                            f"{MOST_CANDIDATES}")
        if self.branch is not None:
            given = ",".join(map(str, self.branch))
            falling = sorted(self.branch, reverse=True)
            if not self.branch or falling[-1] < 1 or list(self.branch) != falling:
                raise UserError(f"--branch {given} must be numbers of at least 1 that don't rise, like 4,2,1")
            if falling[0] > MOST_CANDIDATES or len(falling) > MOST_CANDIDATES:
                raise UserError(f"--branch {given:.80} must be at most {MOST_CANDIDATES} numbers of at most "
                                f"{MOST_CANDIDATES}")
            if self.num_samples > 1:
                raise UserError(f"--num_samples {self.num_samples} and --branch {given} exclude each other; "
                                f"for {self.num_samples} whole samples leave --branch out")
        for name, allowed in (("tile_text", TILE_TEXTS), ("color_fix", (None, *COLOR_FIXES))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)} must be one of "
                                f"{', '.join(filter(None, allowed))}")

    @property
    def candidates(self) -> tuple[int, ...]:
        """How many candidates write each image; the last number is also that of further images."""
        return (self.num_samples,) if self.branch is None else tuple(self.branch)

    @property
    def judge(self) -> str | None:
        """The name of the judge, or None where nothing is judged."""
        return self.pick or (AGREEMENT if self.candidates[0] > 1 else None)


def add_restore_flags(parser: ArgumentParser) -> None:
    """Add a flag `--NAME` for each field of `RestoreOptions`."""
    for item in fields(RestoreOptions):
        parser.add_argument(f"--{item.name}", type=item.metadata["type"], default=item.default,
                            choices=item.metadata["choices"], help=item.metadata["help"].replace("%", "%%"))


def restore_options(args: Namespace) -> RestoreOptions:
    """Return the options that the flags of `add_restore_flags` give."""
    return RestoreOptions(**{item.name: getattr(args, item.name) for item in fields(RestoreOptions)})


def given_options(args: Namespace) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    return {item.name: getattr(args, item.name) for item in fields(RestoreOptions)
            if getattr(args, item.name) != item.default}
