"""What may come next in a chain: a grammar that forces its form, so every completion is well formed.

Knows ids and budgets, as grammar.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from realsr_r1.chain.spec import image_sizes
from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import UserError
from realsr_r1.rollout.grammar import FREE

_CODE, _BODY = -1, -2  # in a chain's program: slots for a code and for a text body, without a fixed id


class ChainGrammar:
    """Forces the whole chain: tags, spans and end-of-turn. Text bodies and codes are chosen.

    A chain is a program of slots, one for each token: a fixed id, a code, or a text body. A row
    stays in the slot of a text body until it writes the first id of what follows (the closing tag;
    without tags the next image, the next tag or the end). That id is forced when the body has
    `max_text_tokens`, or when the rest of the chain needs all that is left of `max_new_tokens`. So
    every completion is well formed. `image_sizes` has an entry for each prompt: (rows, columns) in
    grid units of its images, in order. `prompt_of_row` (R,) says which prompt a row belongs to.
    `given`: for each prompt the ids of its text bodies, in order, which are forced then; None where
    texts are chosen. A chain of given texts has a known length, and `max_new_tokens` is the longest
    one then. Raises `UserError` when the budget can't hold the chain.
    """

    def __init__(self, layout: TokenLayout, image_sizes: Sequence[Sequence[Sequence[int]]],
                 prompt_of_row: torch.Tensor, max_new_tokens: int, max_text_tokens: int, vocab_size: int,
                 given: Sequence[Sequence[Sequence[int]]] | None = None):
        if layout.chain_form is None:
            raise UserError('grammar "chain" needs a layout that knows the chain (make it with a '
                            'ChainProcessor)')
        self.layout = layout
        self.max_text_tokens = max_text_tokens
        self.prompt_of_row = prompt_of_row
        device = prompt_of_row.device
        programs = [_Program(layout, sizes, texts) for sizes, texts in
                    zip(image_sizes, given or [None] * len(image_sizes), strict=True)]
        if given is not None:
            max_new_tokens = max(len(program.ids) for program in programs)
        self.max_new_tokens = max_new_tokens
        for program in programs:
            if len(program.ids) > max_new_tokens:
                raise UserError(f"max_new_tokens is {max_new_tokens}, but the chain's tags and images alone "
                                f"take {len(program.ids)} tokens; raise it or ask for smaller images")
        self._longest_span = max(program.longest_span for program in programs)
        length = max(len(program.ids) for program in programs) + 1

        def table(lists: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([values + [fill] * (length - len(values)) for values in lists], device=device)

        self.ids = table([program.ids for program in programs], layout.pad)  # (prompts, slots)
        self.offsets = table([program.offsets for program in programs], 0)
        self.sections = table([program.sections for program in programs], 0)
        self.unchanged = table([program.unchanged_steps() for program in programs], max_new_tokens)
        self.closed = table([program.images_closed() for program in programs], len(layout.chain_form.shares))
        self.ends = torch.tensor([len(program.ids) for program in programs], device=device)
        sections = layout.chain_form.sections
        # For each section, the id that ends its body.
        self.closing = torch.tensor(programs[0].closing, device=device)
        self.in_body = torch.zeros(len(sections), vocab_size, dtype=torch.bool, device=device)
        self.in_body[:, list(layout.chain_form.body_ids)] = True
        self.in_body[torch.arange(len(sections), device=device), self.closing] = True
        self.has_body = len(layout.chain_form.body_ids) > 0
        # For each row: tokens written; the next slot; tokens of its current text body; tokens of
        # its current image span.
        self.position, self.slot, self.body_length, self.offset = (torch.zeros_like(prompt_of_row)
                                                                   for _ in range(4))
        self.done = torch.zeros_like(prompt_of_row, dtype=torch.bool)

    def forced(self) -> torch.Tensor:
        """Return the only id that the chain leaves to each row, (R,).

        It is the pad token for a finished row, and `FREE` where there is a choice.
        """
        ids = self.ids[self.prompt_of_row, self.slot]
        # The number of tokens that must still come, the closing tag's first id included.
        rest = self.ends[self.prompt_of_row] - self.slot
        closes = (self.body_length >= self.max_text_tokens) | (rest >= self.max_new_tokens - self.position)
        if not self.has_body:
            closes = torch.ones_like(closes)
        closing = self.closing[self.sections[self.prompt_of_row, self.slot]]
        forced = torch.where((ids == _BODY) & closes, closing, ids)
        return forced.masked_fill_(forced < 0, FREE)

    def upcoming(self, count: int) -> torch.Tensor:
        """Return `forced()` of the next `count` tokens, (R, count).

        Values after a row's `unchanged_steps()` have no meaning.
        """
        slots = self.slot[:, None] + torch.arange(1, count, device=self.slot.device)
        later = self.ids[self.prompt_of_row[:, None], slots.clamp_(max=self.ids.shape[1] - 1)]
        return torch.cat((self.forced()[:, None], later.masked_fill_(later < 0, FREE)), dim=1)

    def allowed(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return which ids may come next for `rows` that are in text bodies, (n, vocabulary).

        Values of other rows have no meaning.
        """
        return self.in_body[self.sections[self.prompt_of_row[rows], self.slot[rows]]]

    def draws_by_entropy(self, rows: torch.Tensor | slice) -> torch.Tensor | None:
        """Return which of `rows` draw outside image bodies as codes are drawn, (n,) bool; None: none."""
        return None

    def chooses_text(self) -> torch.Tensor:
        """Return which rows are in text bodies, (R,) bool."""
        return self.ids[self.prompt_of_row, self.slot] == _BODY

    def unchanged_steps(self) -> torch.Tensor:
        """Return for how many tokens each row is sure to stay where it is, (R,).

        A row is in text, in a tag, at the start of a span, in codes, or done.
        """
        return self.unchanged[self.prompt_of_row, self.slot]

    def advance(self, tokens: torch.Tensor, count: torch.Tensor | int = 1) -> None:
        """Tell the grammar which token every row took, (R,).

        With `count` (R,), a row took that many tokens: `tokens` has the first of them, and the
        others are its `upcoming` ones. 0 stands for none.
        """
        self.position = self.position + count
        stays = (self.ids[self.prompt_of_row, self.slot] == _BODY) & (
            tokens != self.closing[self.sections[self.prompt_of_row, self.slot]])
        self.body_length = (self.body_length + 1) * stays
        self.slot = self.slot + (~stays & ~self.done) * count
        self.offset = self.offsets[self.prompt_of_row, self.slot]
        self.done = self.slot >= self.ends[self.prompt_of_row]

    def images_closed(self) -> torch.Tensor:
        """Return how many images each row has written to their end, (R,)."""
        return self.closed[self.prompt_of_row, self.slot]

    def end(self, rows: torch.Tensor) -> None:
        """End these rows where they are, (R,) bool; they count as finished."""
        self.slot = torch.where(rows, self.ends[self.prompt_of_row], self.slot)
        self.offset = self.offset * ~rows
        self.done = self.done | rows

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""
        self.prompt_of_row, self.position, self.slot, self.body_length, self.offset, self.done = (
            state[rows] for state in (self.prompt_of_row, self.position, self.slot, self.body_length,
                                      self.offset, self.done))

    def longest_span(self) -> int:
        """Return the number of tokens of the longest image."""
        return self._longest_span


class _Program:
    """One prompt's chain as slots.

    `ids`: the fixed id of each slot, or `_CODE` or `_BODY`. `offsets`: the place of each slot in
    its image span. `sections`: the number of each slot's section. `closing`: for each section the
    id that ends its text body (without meaning for an image or a given text).
    """

    def __init__(self, layout: TokenLayout, image_sizes: Sequence[Sequence[int]],
                 texts: Sequence[Sequence[int]] | None):
        self.ids: list[int] = []
        self.offsets: list[int] = []
        self.sections: list[int] = []
        self.longest_span = 0
        sections = layout.chain_form.sections
        self.closing = [layout.end_of_turn] * len(sections)
        self._ends_body = False  # whether what is added next ends a text body
        if len(image_sizes) != len(layout.chain_form.shares):
            raise UserError(f"image_sizes has {len(image_sizes)} sizes; the chain has "
                            f"{len(layout.chain_form.shares)} images")
        if texts is not None and len(texts) != len(sections) - len(image_sizes):
            raise UserError(f"{len(texts)} texts are given; the chain has {len(sections) - len(image_sizes)}")
        sizes, bodies = iter(image_sizes), iter(texts or ())
        for number, section in enumerate(sections):
            self._add(number, section.open_ids)
            if section.is_image:
                rows, columns = next(sizes)
                if rows not in layout.size_ids or columns not in layout.size_ids:
                    raise UserError(f"an image of {rows} x {columns} grid units has no size tokens; the "
                                    f"vocabulary has sizes {min(layout.size_ids)} to {max(layout.size_ids)}")
                width = columns * layout.codes_per_unit
                lines = ([_CODE] * width + [layout.new_line]) * (rows * layout.codes_per_unit)
                span = [layout.image_start, layout.size_ids[rows], layout.size_ids[columns], *lines,
                        layout.image_end]
                self._add(number, span, range(len(span)))
                self.longest_span = max(self.longest_span, len(span))
            elif texts is not None:
                self._add(number, list(next(bodies)))
            else:
                self._add(number, [_BODY])
                self._ends_body = True
            self._add(number, section.close_ids)
        self._add(len(sections) - 1, [layout.end_of_turn])

    def unchanged_steps(self) -> list[int]:
        """Return for each slot how many slots of the same kind come from it on.

        The kinds are: in a text body, outside an image, at an image's start, and in an image's
        body.
        """
        slots = zip(self.ids, self.offsets, strict=True)
        kinds = [(token == _BODY, offset >= 1, offset >= 3) for token, offset in slots]
        steps = [1] * len(kinds)
        for slot in range(len(kinds) - 2, -1, -1):
            if kinds[slot] == kinds[slot + 1] and self.ids[slot] != _BODY:
                steps[slot] = steps[slot + 1] + 1
        return steps

    def images_closed(self) -> list[int]:
        """Return for each slot how many images end before it."""
        neighbours = zip(self.offsets, self.offsets[1:], strict=False)
        return [0, *accumulate(offset > 0 and after == 0 for offset, after in neighbours)]

    def _add(self, section: int, ids: Sequence[int], offsets: Sequence[int] | None = None) -> None:
        offsets = [0] * len(ids) if offsets is None else offsets
        if ids and self._ends_body:  # the first id is written in the slot of the text body
            self.closing[self.sections[-1]] = ids[0]
            ids, offsets, self._ends_body = ids[1:], offsets[1:], False
        self.ids += ids
        self.offsets += offsets
        self.sections += [section] * len(ids)


def chain_sizes(layout: TokenLayout, prompt_ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the sizes of a chain's images, computed from the last image of the prompt.

    Raises `UserError` when the prompt holds no image.
    """
    spans = layout.find_spans(prompt_ids)
    if not spans:
        raise UserError("the prompt holds no image, so the chain's image sizes are unknown; set image_sizes")
    height, width = len(spans[-1].codes), len(spans[-1].codes[0])
    return image_sizes(layout.chain_form.shares, height // layout.codes_per_unit,
                       width // layout.codes_per_unit)
