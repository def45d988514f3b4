"""`--stop_if`: conditions on logged numbers that end a run, as pure functions on its log.

Whether a run has to stop is a function of the log's records alone. So nothing is counted beside
them, and a resumed run, whose checkpoint holds the log up to it, goes on counting. `stopping` ends
the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realsr_r1.core.errors import UserError, meant

EVALUATION = "eval_"  # what the names of an evaluation's numbers begin with
_FORM = re.compile(r"\s*([^\s<>=]+)\s*([<>])\s*(\S+?)\s*(?:\s+for\s+(\d+))?\s*")


@dataclass(frozen=True)
class Condition:
    """A logged number that is below or above a bound, for some consecutive logged steps."""

    name: str
    sign: str
    bound: float
    steps: int = 1

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `NAME<NUMBER` or `NAME>NUMBER`, with or without `for N`.

        Raises `UserError` for anything else.
        """
        found = _FORM.fullmatch(text)
        try:
            condition = cls(found[1], found[2], float(found[3]), int(found[4] or 1))
        except (TypeError, ValueError):  # no match, or no number
            condition = None
        if condition is None or not math.isfinite(condition.bound) or condition.steps < 1:
            raise UserError(f"--stop_if {text!r} is no condition: write a logged number's name, < or >, and "
                            "a number, and 'for N' for N logged steps in a row, such as "
                            "\"format<0.5 for 20\"")
        return condition

    def __str__(self) -> str:
        """The condition as a user would write it: equal conditions have equal texts."""
        bound = repr(self.bound).removesuffix(".0")
        return f"{self.name}{self.sign}{bound}" + (f" for {self.steps}" if self.steps > 1 else "")

    def is_met_by(self, value: float) -> bool:
        """Whether `value` is beyond the bound; NaN is not."""
        return value < self.bound if self.sign == "<" else value > self.bound

    def key(self, logged: Collection[str]) -> str | None:
        """The name in `logged` that this condition's name means, or None.

        A reward's short name means its mean, and `total` the mean of their weighted sum; with
        `eval_` before it, that of the evaluation.
        """
        prefix = EVALUATION if self.name.startswith(EVALUATION) else ""
        short = self.name.removeprefix(prefix)
        meant = [self.name, f"{prefix}rewards/{short}_reward/mean", f"{prefix}rewards/{short}/mean",
                 *([f"{prefix}reward"] if short == "total" else [])]
        return next((key for key in meant if key in logged), None)


def streak(condition: Condition, records: Sequence[Mapping[str, Any]]) -> list[float]:
    """The latest values in a row that meet the condition, at most `condition.steps` of them.

    `records`: a run's log, a dict each, in order. Records without the number, or with None for it,
    are passed over: an evaluation's numbers are counted by evaluations.
    """
    values: list[float] = []
    for record in reversed(records):
        key = condition.key(record)
        if key is None or record[key] is None:
            continue
        if len(values) == condition.steps or not condition.is_met_by(record[key]):
            break
        values.insert(0, record[key])
    return values


def first_met(conditions: Iterable[Condition],
              records: Sequence[Mapping[str, Any]]) -> tuple[Condition, list[float]] | None:
    """The first condition that is met now, with the values that met it; None where none is."""
    found = ((condition, streak(condition, records)) for condition in conditions)
    return next((pair for pair in found if len(pair[1]) == pair[0].steps), None)


def never_logged(conditions: Iterable[Condition], records: Sequence[Mapping[str, Any]]) -> Condition | None:
    """The first condition whose number should be in the last of `records` and is in none; or None."""
    is_evaluation = any(key.startswith(EVALUATION) for key in records[-1])
    return next((condition for condition in conditions
                 if condition.name.startswith(EVALUATION) == is_evaluation
                 and not any(condition.key(record) for record in records)), None)


def require_logged(conditions: Iterable[Condition], logged: Collection[str]) -> None:
    """Raise `UserError` for a condition on a number that is not in `logged`."""
    for condition in conditions:
        if condition.key(logged) is None:
            raise UserError(unknown_name(condition, logged))


def unknown_name(condition: Condition, logged: Collection[str]) -> str:
    """Say that the condition's number is not in `logged`, with names that are."""
    if condition.name.startswith(EVALUATION) and not any(name.startswith(EVALUATION) for name in logged):
        return (f"--stop_if {str(condition)!r}: this run does not evaluate, so it logs no {condition.name}; "
                "give --eval_strategy steps")
    means = [re.fullmatch(r"rewards/(.+?)(?:_reward)?/mean", name) for name in logged]
    rewards = [mean[1] for mean in means if mean]
    near = meant(condition.name, sorted({*rewards, "total", *logged}))
    return (f"--stop_if {str(condition)!r}: this run logs no {condition.name}{near}; it may be a reward "
            f"({', '.join(sorted(rewards))}), total, repeated_rows, or any other name in log_history.jsonl "
            "(docs/algorithm.md lists them)")
