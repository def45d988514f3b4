"""The line of visitors: one restoration at a time, in the order in which they came."""

from __future__ import annotations

import threading

from realsr_r1.core.errors import UserError


class Turns:
    """Hands out turns. `most`: how many may wait behind the one whose turn it is."""

    def __init__(self, most: int):
        self.most = most
        self._line: list[Turn] = []
        self._changed = threading.Condition()

    def take(self) -> Turn:
        """Stand at the end of the line. Raises `UserError` when it is full."""
        with self._changed:
            if len(self._line) > self.most:
                waiting = f"{self.most} more photo{'s are' if self.most > 1 else ' is'} waiting" \
                    if self.most else "nobody can wait here"
                raise UserError(f"A photo is being restored and {waiting}; try again in a few minutes.")
            turn = Turn(self)
            self._line.append(turn)
            return turn


class Turn:
    """A place in the line, which must be given back with `end`."""

    def __init__(self, turns: Turns):
        self._turns = turns

    def wait(self, seconds: float) -> int:
        """Wait until the number of those ahead changes, at most `seconds`, and return it.

        0: it's this one's turn.
        """
        with self._turns._changed:
            ahead = self._turns._line.index(self)
            if ahead:
                self._turns._changed.wait(seconds)
            return self._turns._line.index(self)

    def end(self) -> None:
        """Leave the line, whether or not it was this one's turn."""
        with self._turns._changed:
            if self in self._turns._line:
                self._turns._line.remove(self)
                self._turns._changed.notify_all()
