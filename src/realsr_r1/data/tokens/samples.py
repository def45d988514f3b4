"""A tokenised sample, and what part of it each token belongs to: the question, a section of the chain, or other parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from realsr_r1.chain.text import SECTIONS

QUESTION = -1  # not trained on
# An answer's parts, by number: bodies of the chain's sections; their tags and the end of turn; what is no chain.
PARTS = (*SECTIONS, "tags", "text", "image")

Piece = tuple[str, Sequence[int]]  # (part, its ids)


@dataclass
class Sample:
    """`input_ids` and, for each, the number of its part (`QUESTION` or an index of `PARTS`)."""

    input_ids: list[int]
    sections: list[int]

    @classmethod
    def of(cls, question: Sequence[int], answer: Iterable[Piece]) -> Sample:
        """A turn: the question's ids, and the answer piece by piece."""
        sample = cls(list(question), [QUESTION] * len(question))
        for part, ids in answer:
            sample.input_ids += ids
            sample.sections += [PARTS.index(part)] * len(ids)
        return sample

    def __add__(self, other: Sample) -> Sample:
        """A conversation of several turns."""
        return Sample(self.input_ids + other.input_ids, self.sections + other.sections)
