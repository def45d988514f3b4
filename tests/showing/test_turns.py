"""Visitors come on in the order in which they came, one at a time, and a full line says so."""

from __future__ import annotations

import threading

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.showing.turns import Turns


def test_who_came_first_goes_first_and_those_who_leave_make_room():
    turns = Turns(most=2)
    first, second, third = turns.take(), turns.take(), turns.take()
    assert [turn.wait(0) for turn in (first, second, third)] == [0, 1, 2]
    second.end()
    assert third.wait(0) == 1
    first.end()
    assert third.wait(0) == 0


def test_a_full_line_is_refused_in_words():
    for most, words in ((0, "nobody can wait here"), (1, "1 more photo is waiting"),
                        (2, "2 more photos are waiting")):
        turns = Turns(most)
        line = [turns.take() for _ in range(1 + most)]
        with pytest.raises(UserError, match=f"A photo is being restored and {words}; try again"):
            turns.take()
        line[0].end()
        turns.take()


def test_waiting_ends_when_somebody_leaves():
    turns = Turns(most=1)
    first, second = turns.take(), turns.take()
    threading.Timer(0.1, first.end).start()
    assert second.wait(30) == 0


def test_leaving_twice_does_no_harm():
    turns = Turns(most=1)
    first, second = turns.take(), turns.take()
    first.end()
    first.end()
    assert second.wait(0) == 0
