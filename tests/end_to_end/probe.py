"""A reward of one's own (`--reward_funcs probe:vowels`) whose module also watches the run from
inside each process.

Loaded by the run as any user's module is. What it sees goes to the folder `PROBE_FOLDER`;
`PROBE_STOP`, "step 3" or "save 3", makes the process wait for ever before that step, or inside the
save after it, so that a test can kill it there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RANK = int(os.environ.get("RANK", 0))


def vowels(completions: list[str], completion_ids: list[list[int]], trainer_state: TrainerState,
           **columns: Any) -> list[float]:
    """The share of vowels in a completion, from 0 to 1: completions differ in it, so it always
    teaches something.
    """
    _write(f"completions-{trainer_state.global_step}", {"lengths": [len(ids) for ids in completion_ids],
                                                        "problems": columns["problem"]})
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


class Probe(TrainerCallback):
    """Writes what a rank holds when training begins and after every step; stops where it is told
    to.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       model: Any = None,
                       **kwargs: Any) -> None:
        parts = {name: {"all": parameter.ds_numel, "here": parameter.ds_tensor.numel()}
                 for name, parameter in model.named_parameters() if hasattr(parameter, "ds_tensor")}
        save_weights("begin", model)
        _write("begin", {"pid": os.getpid(), "step": state.global_step, "parts": parts})

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                      **kwargs: Any) -> None:
        _stop_if_told(f"step {state.global_step + 1}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    model: Any = None,
                    **kwargs: Any) -> None:
        save_weights(f"step-{state.global_step}", model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                **kwargs: Any) -> None:
        # callbacks of ours come later: the checkpoint has no marker yet
        _stop_if_told(f"save {state.global_step}")


def save_weights(when: str, model: Any) -> None:
    """The whole weights as this rank gathers them. All ranks must call it."""
    gathered: Any = contextlib.nullcontext()
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with gathered:
        weights = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}
    torch.save(weights, _folder() / f"weights-{when}-rank{RANK}.pt")


def _stop_if_told(place: str) -> None:
    if os.environ.get("PROBE_STOP") == place:
        _write("stopped", {"pid": os.getpid(), "at": place})
        while True:
            time.sleep(60)


def _write(name: str, value: Any) -> None:
    path = _folder() / f"{name}-rank{RANK}.json"
    path.with_suffix(".partial").write_text(json.dumps(value), encoding="utf-8")
    path.with_suffix(".partial").rename(path)


def _folder() -> Path:
    return Path(os.environ["PROBE_FOLDER"])


transformers.trainer.DEFAULT_CALLBACKS.append(Probe)
