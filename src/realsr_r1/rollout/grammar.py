"""What may come next in an image: a grammar over token ids, kept as tensors for a whole batch of rows.

chain_grammar.py forces a whole chain; rows_grammar.py is a looser one. They count, for each row, the
tokens of the image span it is in. This `offset` is 0 outside, 1 after the image start, 2 after the
token for the number of rows, and 3 or more among codes and new lines. Knows ids and budgets; no text,
no policy, no random numbers.
"""

from __future__ import annotations

from bisect import bisect_right

import torch

from realsr_r1.chain.tokens import TokenLayout

FREE = -1  # in `forced()`: the row has a choice


class ImageGrammar:
    """Constrains image spans only.

    Text is free, sizes are chosen among those that fit, and the rest of a span has a fixed form. An
    image may start only where the smallest span still fits into `max_new_tokens`, so no span is
    ever cut. `vocab_size` is the policy's. Rows end with the end-of-turn token or at the budget.
    """

    def __init__(self, layout: TokenLayout, rows: int, max_new_tokens: int, vocab_size: int,
                 device: torch.device):
        self.layout = layout
        self.max_new_tokens = max_new_tokens
        self.units = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        for units, token in layout.size_ids.items():
            self.units[token] = units
        self.in_text = torch.ones(vocab_size, dtype=torch.bool, device=device)
        self.in_text[layout.vocab_size:] = False
        self.in_text[[*layout.code_ids, *layout.size_ids.values(), layout.image_end, layout.new_line,
                      layout.pad,
                      layout.bos]] = False
        self.no_image = self.in_text.clone()
        self.no_image[layout.image_start] = False
        # For each row: tokens written; tokens of its current image span; the size of the span's
        # grid of codes.
        self.position, self.offset, self.height, self.width = torch.zeros(4, rows, dtype=torch.int64,
                                                                          device=device).unbind()
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)

    def forced(self) -> torch.Tensor:
        """Return the only id that is possible for each row, (R,).

        It is the pad token for a finished row, and `FREE` where there is a choice.
        """
        return self.upcoming(1)[:, 0]

    def upcoming(self, count: int) -> torch.Tensor:
        """Return `forced()` of the next `count` tokens, (R, count).

        Values after a row's `unchanged_steps()` have no meaning.
        """
        place = self.offset[:, None] - 3 + torch.arange(count, device=self.offset.device)
        height, width = self.height[:, None], self.width[:, None]
        line = width + 1
        forced = torch.where(place % line == width, self.layout.new_line, FREE)
        forced.masked_fill_(place == height * line, self.layout.image_end)
        forced.masked_fill_(place < 0, FREE)
        return forced.masked_fill_(self.done[:, None], self.layout.pad)

    def allowed(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return which ids may come next for `rows` outside image bodies, (n, vocabulary)."""
        offset, remaining = self.offset[rows, None], self.max_new_tokens - self.position[rows, None]
        smallest = min(self.layout.size_ids)
        starts = self.layout.span_length(smallest, smallest) <= remaining
        text = torch.where(starts, self.in_text, self.no_image)
        per_unit = self.layout.codes_per_unit
        # The tokens that an image of this many rows (and the fewest columns) still needs; below,
        # the same for this many columns.
        by_rows = 3 + self.units * (per_unit * (smallest * per_unit + 1))
        by_columns = 2 + self.height[rows, None] * (self.units * per_unit + 1)
        is_size = self.units > 0
        needed = torch.where(offset == 1, by_rows, by_columns)
        return torch.where(offset == 0, text, is_size & (needed <= remaining))

    def draws_by_entropy(self, rows: torch.Tensor | slice) -> torch.Tensor | None:
        """Return which of `rows` draw outside image bodies as codes are drawn, (n,) bool; None: none."""
        return None

    def chooses_text(self) -> torch.Tensor:
        """Return which rows may have a choice outside image bodies, (R,) bool."""
        return (self.offset < 3) & ~self.done

    def unchanged_steps(self) -> torch.Tensor:
        """Return for how many tokens each row is sure to stay where it is, (R,).

        A row is in text, in an image's body, or done.
        """
        steps = torch.where(self.offset >= 3, 4 + self.height * (self.width + 1) - self.offset, 1)
        return steps.masked_fill_(self.done, self.max_new_tokens)

    def advance(self, tokens: torch.Tensor, count: torch.Tensor | int = 1) -> None:
        """Tell the grammar which token every row took, (R,).

        With `count` (R,), a row took that many tokens: `tokens` has the first of them, and the
        others are its `upcoming` ones. 0 stands for none.
        """
        self.position = self.position + count
        units = self.units[tokens] * self.layout.codes_per_unit
        self.height = torch.where(self.offset == 1, units, self.height)
        self.width = torch.where(self.offset == 2, units, self.width)
        inside = (self.offset > 0) | (tokens == self.layout.image_start)
        after = self.offset + count
        ends = (self.offset >= 3) & (after == 4 + self.height * (self.width + 1))
        self.offset = after * (inside & ~ends)
        self.done = self.done | (tokens == self.layout.end_of_turn) | (self.position >= self.max_new_tokens)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""
        self.position, self.offset, self.height, self.width, self.done = (
            state[rows] for state in (self.position, self.offset, self.height, self.width, self.done))

    def longest_span(self) -> int:
        """Return the number of tokens of the longest image that fits the budget (0: none fits)."""
        sizes, per_unit, longest = sorted(self.layout.size_ids), self.layout.codes_per_unit, 0
        for rows in sizes:
            most_columns = ((self.max_new_tokens - 4) // (rows * per_unit) - 1) // per_unit
            fitting = bisect_right(sizes, most_columns)
            if fitting:
                longest = max(longest, self.layout.span_length(rows, sizes[fitting - 1]))
        return longest
