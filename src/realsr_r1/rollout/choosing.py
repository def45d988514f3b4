"""Choosing among the completions of a prompt while they are written; the losers leave the batch.

A prompt's completions are compared when all that are left have closed the same image of the chain.
One that has closed it before the others goes on meanwhile, and what it writes is lost only if it
loses. Nothing is computed twice, and the completions that stay are those that would be written
without a choice. Knows ids; what an image shows, and which is good, it leaves to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realsr_r1.chain.tokens import TokenLayout
    from realsr_r1.rollout.state import RolloutState

# Called with the number of the prompt, the number of the image in the chain, and the ids of that
# image for each completion that is left, by its number among the prompt's completions. Returns the
# numbers of those that go on, at least one.
Choose = Callable[[int, int, Mapping[int, list[int]]], Collection[int]]


class Choosing:
    """The choices of one rollout: asks `choose` whenever a prompt is ready, and ends the losers.

    `group`: the number of completions of each prompt. The layout must know the chain.
    """

    def __init__(self, choose: Choose, layout: TokenLayout, group: int):
        self.choose, self.layout, self.group = choose, layout, group
        sections = layout.chain_form.sections
        self.images = [number for number, section in enumerate(sections) if section.is_image]
        self._closed: dict[int, int] = {}  # completion -> images it has closed
        self._asked: dict[int, int] = {}  # prompt -> images that were asked about
        self._left: dict[int, list[int]] = {}  # prompt -> completions that are left

    def look(self, state: RolloutState) -> None:
        """Ask about every prompt whose completions have all closed an image since the last time."""
        if not self._left:
            for completion in state.rows.tolist():
                self._left.setdefault(completion // self.group, []).append(completion)
        self._closed |= zip(state.rows.tolist(), state.grammar.images_closed().tolist(), strict=True)
        for prompt, left in self._left.items():
            while self._asked.get(prompt, 0) < min(self._closed[completion] for completion in left):
                left[:] = self._ask(state, prompt, left)

    def _ask(self, state: RolloutState, prompt: int, left: list[int]) -> list[int]:
        """Return which of the completions that are left stay, and end the others."""
        image = self._asked[prompt] = self._asked.get(prompt, 0) + 1
        section = self.images[image - 1]
        written = {}
        for completion in left:
            ids = state.tokens[completion, :int(state.lengths[completion])].tolist()
            written[completion % self.group] = self.layout.chain_bodies(ids)[section]
        chosen = set(self.choose(prompt, image - 1, written))
        if not chosen or chosen - set(written):
            raise ValueError(f"of the completions {sorted(written)} {sorted(chosen)} were chosen")
        staying = [completion for completion in left if completion % self.group in chosen]
        if len(staying) < len(left):
            state.leave_out([completion for completion in left if completion not in staying])
        return staying
