"""A tokenised sample, and what part of it each token belongs to: the question, a section of the
chain, or other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

QUESTION = -1  # not trained on

Piece = tuple[str, Sequence[int]]  # (part, its ids)


@dataclass
class Sample:
    """`input_ids` and, for each, the number of its part (`QUESTION` or an index of
    `ChainSpec.parts`).
    """

    input_ids: list[int]
    sections: list[int]

    @classmethod
    def of(cls, question: Sequence[int], answer: Iterable[Piece], parts: Sequence[str]) -> Sample:
        """A turn: the question's ids, and the answer piece by piece;

        `parts`: names of an answer's parts.
        """
        sample = cls(list(question), [QUESTION] * len(question))
        for part, ids in answer:
            sample.input_ids += ids
            sample.sections += [parts.index(part)] * len(ids)
        return sample

    def __add__(self, other: Sample) -> Sample:
        """A conversation of several turns."""
        return Sample(self.input_ids + other.input_ids, self.sections + other.sections)
