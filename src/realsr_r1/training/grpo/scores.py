"""What rewards return: checked on each rank, and a warning when nothing can be learned from it.

A reward with a fault gives no scores until the ranks have agreed on the fault (`agreement`); one
whose scores have no spread is not at fault, but somebody should know.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image
from transformers import TrainerState
from trl.trainer.utils import get_callable_name, is_async_callable

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import render_chain
from realsr_r1.core.errors import UserError
from realsr_r1.core.import_named import raised, tried
from realsr_r1.training.agreement import Agreement

IDLE_STEPS = 5  # without any gradient, and there is a warning
LARGEST = torch.finfo(torch.float32).max  # TRL keeps scores in float32
SHOWN = 200  # characters of a completion in a message


def guarded(reward: Callable[..., Any], agreement: Agreement,
            phase: Callable[[str], AbstractContextManager]) -> Callable[..., Any]:
    """Wrap `reward` so that it gives None for every completion when it has a fault, or its scores.

    The fault, a `UserError` that names the reward, goes to `agreement`. `phase`: what is told that the
    reward is at work.
    """
    name = get_callable_name(reward)

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        with agreement, phase(f"reward {name}"):
            try:
                yield
            except UserError:
                raise
            except Exception as error:
                raise raised(f"the reward {name}", error) from error

    if is_async_callable(reward):
        async def call(*args: Any, **kwargs: Any) -> list[float | None]:
            with watched():
                return checked_scores(name, await reward(*args, **kwargs), kwargs["completions"])
            return [None] * len(kwargs["completions"])
    else:
        def call(*args: Any, **kwargs: Any) -> list[float | None]:
            with watched():
                return checked_scores(name, reward(*args, **kwargs), kwargs["completions"])
            return [None] * len(kwargs["completions"])

    functools.update_wrapper(call, reward)
    call.__name__ = name  # TRL logs by it, and parts of functions have none
    return call


def try_own_rewards(names: Sequence[str], functions: Sequence[Callable[..., Any]], chain: ChainSpec,
                    record: Mapping[str, Any]) -> None:
    """Let each function of one's own judge one well-formed completion, before anything long starts.

    `record`: columns of the dataset for one prompt. The completion's images are its `hq` or a grey
    gradient. Raises `UserError` that names the function, for what it raises and for what isn't a
    score.
    """
    picture = record.get("hq") or Image.linear_gradient("L").convert("RGB")
    texts = {section.name: "a photo" for section in chain.sections if not section.is_image}
    text = render_chain(texts, chain)
    arguments = {"prompts": [[0]], "completions": [text], "completion_ids": [[0]],
                 "images": [[picture] * len(chain.images)], "trainer_state": TrainerState(),
                 "log_extra": lambda *values: None, "log_metric": lambda *values: None,
                 **{name: [value] for name, value in record.items()}}

    def called(function: Callable[..., Any]) -> Any:
        scores = function(**arguments)
        return asyncio.run(scores) if asyncio.iscoroutine(scores) else scores

    for name, function in zip(names, functions, strict=True):
        if ":" in name:
            scores = tried(f"the reward {name}, given one completion,", lambda own=function: called(own))
            checked_scores(name, scores, [text])


def checked_scores(name: str, scores: Any, completions: Sequence[str]) -> list[float | None]:
    """Return a reward's scores as numbers, one a completion; NaN and None are no score.

    Raises `UserError` that names the reward, and the completion where it is about one.
    """
    scores = scores.tolist() if hasattr(scores, "tolist") else scores  # of torch or numpy
    if not isinstance(scores, (list, tuple)):
        raise UserError(f"the reward {name} returned {_kind(scores)}; it must return a list with a number or "
                        "None for each completion")
    if len(scores) != len(completions):
        raise UserError(f"the reward {name} returned {len(scores)} scores for {len(completions)} "
                        "completions; it must return one for each")
    return [_checked(name, score, number, completions) for number, score in enumerate(scores)]


def _checked(name: str, score: Any, number: int, completions: Sequence[str]) -> float | None:
    where = f"for completion {number} of its rank ({completions[number][:SHOWN]!r})"
    score = score.tolist() if hasattr(score, "tolist") else score
    if score is None:
        return None
    if not isinstance(score, (int, float)):
        raise UserError(f"the reward {name} returned {_kind(score)} {where}; it must be a number or None")
    if abs(score) > LARGEST:
        raise UserError(f"the reward {name} returned {score} {where}; it must be finite, or None")
    return float(score)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


class IdleWatch:
    """Warns once when no completion had an advantage for some steps in a row.

    `names`: of the rewards.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.seen: list[torch.Tensor] = []
        self.is_done = False

    def warning(self, rewards: torch.Tensor, advantages: torch.Tensor) -> str | None:
        """Return what to say after this step, mostly nothing.

        `rewards`: (N, K) of all processes, NaN where there is no score. `advantages`: of all
        completions, of any shape.
        """
        if self.is_done:
            return None
        self.seen = [] if advantages.any() else [*self.seen, rewards.detach().cpu()]
        if len(self.seen) < IDLE_STEPS:
            return None
        self.is_done = True
        scores = torch.cat(self.seen)
        said = ", ".join(f"{name} {_spread(column)}"
                         for name, column in zip(self.names, scores.unbind(1), strict=True))
        return (f"For {IDLE_STEPS} steps nothing was learned, because the completions of a group all got the "
                f"same: {said}. A reward teaches where its scores differ within a group: sample more freely "
                "(--rollout_temperature, --text_top_k), compare more completions (--num_generations), look "
                "at what is written (realsr-r1 score), or use other rewards")


def _spread(scores: torch.Tensor) -> str:
    scores = scores[~scores.isnan()]
    if not len(scores):
        return "gave no score"
    low, high = scores.min().item(), scores.max().item()
    return f"gave {low:.4g} always" if low == high else f"gave {low:.4g} to {high:.4g}, equal within groups"
