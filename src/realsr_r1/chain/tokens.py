"""Images in the token stream: special ids, sizes, and one image span written and read back.

Ids come from a vocabulary's names, never from numbers in code (Lumina-mGPT's names).
Knows ids and grids of codes; no models, no text beyond those names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from realsr_r1.core.errors import UserError

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
IMAGE_START, IMAGE_END = "<racm3:break>", "<eoss>"
END_OF_TURN, NEW_LINE = "<reserved08706>", "<reserved08799>"
SIZE_BASE = 8800  # "<reserved{8800 + n:05d}>" means n grid units
_DIGITS = "ABCDEFGHIJ"
_CODE_PREFIX, _CODE_SUFFIX = "IMGIMG", "Z"


def size_name(units: int) -> str:
    """The name of the token that says `units` grid units."""
    return f"<reserved{SIZE_BASE + units:05d}>"


def code_name(code: int) -> str:
    """The name of an image code: its decimal digits spelled A=0 ..

    J=9, e.g. 1004 -> IMGIMGBAAEZ.
    """
    return _CODE_PREFIX + "".join(_DIGITS[int(digit)] for digit in str(code)) + _CODE_SUFFIX


@dataclass(frozen=True)
class ImageSpan:
    """A complete image in a stream:

    `ids[start:stop]` from image start to image end, and its codes (h rows of w).
    """

    start: int
    stop: int
    codes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SectionForm:
    """How one section of the chain is tokenised: ids of its opening and closing tag (none where it
    isn't tagged), and of an image its share of the final image's sides (None for a text).
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    share: float | None = None

    @property
    def is_image(self) -> bool:
        """Whether it holds an image."""
        return self.share is not None


@dataclass(frozen=True)
class ChainForm:
    """What the `"chain"` grammar needs of the chain, as ids.

    `sections` in order; `body_ids`: the ids a text body may hold. A body ends when the first id of
    what follows it is drawn (its closing tag, or an image; that id is not in `body_ids`, so it can
    mean nothing else).
    """

    sections: tuple[SectionForm, ...]
    body_ids: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the images, in order."""
        return tuple(section.share for section in self.sections if section.share is not None)


@dataclass(frozen=True)
class TokenLayout:
    """The ids of one vocabulary, and the geometry of its images.

    `size_ids[n]` says n grid units of `grid_unit_px` pixels; `code_ids[c]` is the id of code c; one
    code stands for `downsample` x `downsample` pixels. `chain_form` is there when the layout comes
    from a `ChainProcessor`.
    """

    bos: int
    pad: int
    end_of_turn: int
    image_start: int
    image_end: int
    new_line: int
    size_ids: Mapping[int, int]
    code_ids: tuple[int, ...]
    vocab_size: int
    grid_unit_px: int
    downsample: int
    chain_form: ChainForm | None = None

    @classmethod
    def from_vocabulary(cls, vocabulary: Mapping[str, int], codebook_size: int, grid_unit_px: int,
                        downsample: int) -> TokenLayout:
        """Look every id up by name.

        Raises `UserError` that names the first one missing, or a codebook that misfits.
        """
        def find(name: str) -> int:
            if name not in vocabulary:
                raise UserError(f"the text tokenizer has no token named {name}; it is not that of a "
                                "Lumina-mGPT-style policy")
            return vocabulary[name]

        if grid_unit_px % downsample:
            raise UserError(f"grid_unit_px {grid_unit_px} is not a multiple of the image tokenizer's "
                            f"down-sampling {downsample}")
        code_ids = tuple(find(code_name(code)) for code in range(codebook_size))
        if code_name(codebook_size) in vocabulary:
            raise UserError(f"the vocabulary has more image codes than the image tokenizer's "
                            f"{codebook_size}; they don't belong together")
        size_ids, taken = {}, frozenset(code_ids)  # published vocabularies have thousands of both
        while size_name(len(size_ids) + 1) in vocabulary and vocabulary[size_name(len(size_ids)
                                                                                  + 1)] not in taken:
            size_ids[len(size_ids) + 1] = vocabulary[size_name(len(size_ids) + 1)]
        if not size_ids:
            find(size_name(1))
        return cls(find(BOS), find(PAD), find(END_OF_TURN), find(IMAGE_START), find(IMAGE_END),
                   find(NEW_LINE),
                   size_ids, code_ids, max(vocabulary.values()) + 1, grid_unit_px, downsample)

    @cached_property
    def code_of_id(self) -> dict[int, int]:
        """Token id -> code."""
        return {token: code for code, token in enumerate(self.code_ids)}

    @cached_property
    def units_of_id(self) -> dict[int, int]:
        """Token id of a size -> grid units."""
        return {token: units for units, token in self.size_ids.items()}

    @property
    def codes_per_unit(self) -> int:
        """Codes along one grid unit."""
        return self.grid_unit_px // self.downsample

    def span_length(self, rows: int, columns: int) -> int:
        """Tokens of an image of `rows` x `columns` grid units: start, two sizes, h rows of w codes
        + new line, end.
        """
        return 4 + rows * self.codes_per_unit * (columns * self.codes_per_unit + 1)

    def span(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """Codes (h rows of w) -> the ids of the image span.

        Raises `ValueError` when the grid isn't whole units.
        """
        height, width = len(codes), len(codes[0])
        rows, columns = height // self.codes_per_unit, width // self.codes_per_unit
        is_whole = height % self.codes_per_unit == width % self.codes_per_unit == 0
        if not is_whole or rows not in self.size_ids or columns not in self.size_ids:
            raise ValueError(f"a {height}x{width} grid of codes has no size token (unit: "
                             f"{self.codes_per_unit} codes)")
        ids = [self.image_start, self.size_ids[rows], self.size_ids[columns]]
        for row in codes:
            ids += [self.code_ids[code] for code in row]
            ids.append(self.new_line)
        return ids + [self.image_end]

    def find_spans(self, ids: Sequence[int]) -> list[ImageSpan]:
        """The complete images in a stream, in order. Broken or cut ones are left out."""
        spans, position = [], 0
        while position < len(ids):
            span = self._span_at(ids, position) if ids[position] == self.image_start else None
            if span is not None:
                spans.append(span)
            position = span.stop if span is not None else position + 1
        return spans

    def _span_at(self, ids: Sequence[int], start: int) -> ImageSpan | None:
        sizes = [self.units_of_id.get(token) for token in ids[start + 1:start + 3]]
        if len(sizes) < 2 or None in sizes:
            return None
        stop = start + self.span_length(*sizes)
        if stop > len(ids) or ids[stop - 1] != self.image_end:
            return None
        width = sizes[1] * self.codes_per_unit
        codes = []
        for row in range(start + 3, stop - 1, width + 1):
            if ids[row + width] != self.new_line:
                return None
            codes.append(tuple(self.code_of_id.get(token, -1) for token in ids[row:row + width]))
        return None if any(-1 in row for row in codes) else ImageSpan(start, stop, tuple(codes))
