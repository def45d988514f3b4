"""Scores of held-out experts at an evaluation, which is all that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def monitor_scores(monitors: Mapping[str, Callable[..., list[float | None]]],
                   inputs: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> torch.Tensor:
    """Return the scores (rows, monitors) of completions; NaN where there is none.

    `inputs`: a record for each completion, with its `images`, as TRL gives them to rewards.
    """
    columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
    scores = [monitor(completions=completions, **columns) for monitor in monitors.values()]
    return torch.tensor([[float("nan") if value is None else value for value in row]
                         for row in zip(*scores, strict=True)])
