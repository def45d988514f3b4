"""The loosest grammar: an image's rows are fixed once its size is drawn, and nothing else is.

It is what the published code constrains. Knows ids and budgets; no text, no policy, no random
numbers.
"""

from __future__ import annotations

import torch

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.rollout.grammar import ImageGrammar


class RowsGrammar(ImageGrammar):
    """Fixes the rows of an image and its end, as far as the budget goes.

    Text and sizes may be any token of the vocabulary, image codes among them, and an image may start
    where it has no room. So a span may be cut by `max_new_tokens`. Where a token that is no size is
    drawn as one, the image never ends, and codes follow up to the budget: the published code takes
    the distance of any id from that of size 0 as a size.
    """

    def __init__(self, layout: TokenLayout, rows: int, max_new_tokens: int, vocab_size: int,
                 device: torch.device):
        super().__init__(layout, rows, max_new_tokens, vocab_size, device)
        self.units[self.units == 0] = max_new_tokens
        self.any_token = torch.arange(vocab_size, device=device) < layout.vocab_size

    def allowed(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return which ids may come next for `rows` outside image bodies, (n, vocabulary)."""
        return self.any_token.expand(len(self.offset[rows]), -1)

    def draws_by_entropy(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return which of `rows` draw a size, (n,) bool."""
        return self.offset[rows] > 0

    def unchanged_steps(self) -> torch.Tensor:
        """Return for how many tokens each row is sure to stay where it is, (R,)."""
        steps = super().unchanged_steps()
        return steps.where(self.done, steps.minimum(self.max_new_tokens - self.position))

    def advance(self, tokens: torch.Tensor, count: torch.Tensor | int = 1) -> None:
        """Tell the grammar which token every row took, (R,); see `ImageGrammar.advance`."""
        super().advance(tokens, count)
        self.offset = self.offset * ~self.done  # a row whose image was cut is in none

    def longest_span(self) -> int:
        """Return the number of tokens of the longest image, which the budget alone limits."""
        return self.max_new_tokens
