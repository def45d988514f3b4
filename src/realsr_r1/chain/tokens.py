"""Images in the token stream: special ids, sizes, and writing and reading one image span.

Ids are looked up by their names in the vocabulary (the names are Lumina-mGPT's); the code holds no
id. Knows ids and grids of codes; no models, and no text beyond those names.
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
    """Return the name of an image code: its decimal digits spelled as letters, A for 0 to J for 9.

    For example, 1004 becomes IMGIMGBAAEZ.
    """
    return _CODE_PREFIX + "".join(_DIGITS[int(digit)] for digit in str(code)) + _CODE_SUFFIX


@dataclass(frozen=True)
class ImageSpan:
    """A complete image in a stream: `ids[start:stop]` and its codes (h rows of w).

    The span includes the image start and the image end.
    """

    start: int
    stop: int
    codes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SectionPlace:
    """Where a section of a chain stands in a stream.

    It is `ids[start:stop]` with its tags, and `ids[body:end]` without.
    """

    start: int
    body: int
    end: int
    stop: int


@dataclass(frozen=True)
class SectionForm:
    """How one section of the chain is tokenised.

    It holds the ids of the opening and the closing tag (none where the section isn't tagged). An
    image also has its share of the final image's sides; a text has None there.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    share: float | None = None

    @property
    def is_image(self) -> bool:
        """Whether the section holds an image."""
        return self.share is not None


@dataclass(frozen=True)
class ChainForm:
    """What the `"chain"` grammar needs to know about the chain, as ids.

    `sections`: in order. `body_ids`: the ids that a text body may hold. A body ends when the first
    id of what follows is drawn, which is its closing tag or an image. That id is not in `body_ids`,
    so its meaning is never in doubt.
    """

    sections: tuple[SectionForm, ...]
    body_ids: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the images, in order."""
        return tuple(section.share for section in self.sections if section.share is not None)


@dataclass(frozen=True)
class TokenLayout:
    """The ids of one vocabulary, and the geometry of its images.

    `size_ids[n]` says n grid units of `grid_unit_px` pixels. `code_ids[c]` is the id of code c. One
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
        """Look up every id by its name.

        Raises `UserError` that names the first one that is missing, or a codebook of another size.
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
        size_ids, taken = {}, frozenset(code_ids)  # a set, since published vocabularies have thousands
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
        """The number of codes along one grid unit."""
        return self.grid_unit_px // self.downsample

    def span_length(self, rows: int, columns: int) -> int:
        """Return the number of tokens of an image of `rows` x `columns` grid units.

        They are the start, two sizes, h rows of w codes and a new line, and the end.
        """
        return 4 + rows * self.codes_per_unit * (columns * self.codes_per_unit + 1)

    def span(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """Encode codes (h rows of w) as the ids of an image span.

        Raises `ValueError` when the grid isn't a whole number of units.
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
        """Find the complete images in a stream, in order; broken or cut ones are left out."""
        spans, position = [], 0
        while position < len(ids):
            span = self._span_at(ids, position)
            if span is not None:
                spans.append(span)
            position = span.stop if span is not None else position + 1
        return spans

    def chain_places(self, ids: Sequence[int]) -> list[SectionPlace]:
        """Find the sections of a chain that are completely written, in order.

        A text is complete when the first id of what follows it is there, an image when its span is.
        The list ends before the first section that is not complete, or not as `chain_form` has it.
        """
        sections, places, start = self.chain_form.sections, [], 0
        for number, section in enumerate(sections):
            body = start + len(section.open_ids)
            if tuple(ids[start:body]) != section.open_ids:
                break
            if section.is_image:
                span = self._span_at(ids, body) if body < len(ids) else None
                end = span.stop if span else None
            else:
                after = sections[number + 1] if number + 1 < len(sections) else None
                following = section.close_ids or (after.open_ids if after else (self.end_of_turn,))
                first = following[0] if following else self.image_start
                end = next((index for index in range(body, len(ids)) if ids[index] == first), None)
            if end is None:
                break
            places.append(SectionPlace(start, body, end, end + len(section.close_ids)))
            start = places[-1].stop
        return places

    def chain_bodies(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the bodies of the sections of a chain that are completely written, in order."""
        return [list(ids[place.body:place.end]) for place in self.chain_places(ids)]

    def section_numbers(self, ids: Sequence[int]) -> list[int]:
        """Return the number of each token's section, its tags included; -1 where it is in none.

        Only sections count that are completely written (`chain_places`).
        """
        numbers = [-1] * len(ids)
        for number, place in enumerate(self.chain_places(ids)):
            stop = min(place.stop, len(ids))
            numbers[place.start:stop] = [number] * (stop - place.start)
        return numbers

    def _span_at(self, ids: Sequence[int], start: int) -> ImageSpan | None:
        sizes = [self.units_of_id.get(token) for token in ids[start + 1:start + 3]]
        if ids[start] != self.image_start or len(sizes) < 2 or None in sizes:
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
