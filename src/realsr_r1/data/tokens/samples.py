"""A tokenised sample: its ids, and for each token the part that it belongs to.

A part is the question, a section of the chain, or one of the other parts of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

QUESTION = -1  # the number of the question, which isn't trained on

Piece = tuple[str, Sequence[int]]  # (part, its ids)


@dataclass
class Sample:
    """`input_ids` and, for each id, the number of its part.

    The number is `QUESTION` or an index of `ChainSpec.parts`.
    """

    input_ids: list[int]
    sections: list[int]

    @classmethod
    def of(cls, question: Sequence[int], answer: Iterable[Piece], parts: Sequence[str]) -> Sample:
        """Make one turn of the question's ids and the pieces of the answer.

        `parts`: the names of an answer's parts.
        """
        sample = cls(list(question), [QUESTION] * len(question))
        for part, ids in answer:
            sample.input_ids += ids
            sample.sections += [parts.index(part)] * len(ids)
        return sample

    def __add__(self, other: Sample) -> Sample:
        """Join turns into a conversation."""
        return Sample(self.input_ids + other.input_ids, self.sections + other.sections)
