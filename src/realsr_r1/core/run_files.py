"""The files of a training run's folder that more than training reads: their names and their forms."""

from __future__ import annotations

from typing import Annotated, NotRequired

from realsr_r1.core.schema import Count, Json, Len, Number, Place, Text, TypedDict

LOG_FILE = "log_history.jsonl"  # one JSON object for each logged step
STATE_FILE = "trainer_state.json"  # transformers' own file in a checkpoint, with the log up to it
SETTINGS_FILE = "settings.json"  # a run's settings as name -> value, for reports and for resuming
DIFFERENCES_FILE = "differences.json"  # what the run does otherwise than the profile of --compare_with
STOP_FILE = "stopped.json"  # what ended the run, where a condition of --stop_if did

Settings = dict[Text, Json]


class LogRecord(TypedDict, extra_items=Json):
    """A line of `LOG_FILE`.

    `train_runtime`: seconds of a session, in the line at its end. `step_time`: seconds of a step.
    """

    step: Count
    train_runtime: NotRequired[Number]
    step_time: NotRequired[Number]


class StateFile(TypedDict, total=False, extra_items=Json):
    """`STATE_FILE`, as far as it is read here. Its log may hold lines without a step."""

    global_step: Count
    epoch: Number | None
    log_history: list[dict[Text, Json]]


class StopFile(TypedDict):
    """`STOP_FILE`."""

    step: Count
    condition: Text
    values: list[float]
    reason: Text
    best_checkpoint: Place | None
    best_by: Text | None


class Difference(TypedDict):
    """A row of `DIFFERENCES_FILE`: a setting, in words, as the run has it and as the profile does."""

    setting: Text
    what: Text
    ours: Text
    theirs: Text


class DifferencesFile(TypedDict):
    """`DIFFERENCES_FILE`. `profile`: its name."""

    profile: Text
    rows: list[Difference]


class PromptFile(TypedDict, total=False, extra_items=Json):
    """prompt.json of a saved group of completions: the record that they answer."""

    source: Text | None
    tag: list[Text] | Text | None
    degradation: list[Text] | Text | None
    problem: Text | None
    crop: Annotated[list[int], Len(4, 4)] | None


Rewards = dict[Text, list[float | None]]  # rewards.json beside it: a reward's name -> of each completion
