"""The files of a training run's folder, and of what is exported from it, that several parts read.

Has their names and their forms, and finds what a folder of weights says of the run that left it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NotRequired

from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Count, Json, Len, Number, Place, Text, TypedDict

LOG_FILE = "log_history.jsonl"  # one JSON object for each logged step
STATE_FILE = "trainer_state.json"  # transformers' own file in a checkpoint, with the log up to it
SETTINGS_FILE = "settings.json"  # a run's settings as name -> value, for reports and for resuming
DIFFERENCES_FILE = "differences.json"  # what the run does otherwise than the profile of --compare_with
EXPORT_FILE = "export.json"  # in an exported folder: what it was made from
STOP_FILE = "stopped.json"  # what ended the run, where a condition of --stop_if did

Settings = dict[Text, Json]


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that decide what a model does: weights, configs and tokenizers.

    What lies beside them (a report, samples, checkpoints, restored photos) is not among them.
    """
    return sorted(file for pattern in ("*.safetensors", "*.json", "global_step*/*", "image_tokenizer/*")
                  for file in folder.glob(pattern) if file.is_file())


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


class ExportFile(TypedDict, total=False, extra_items=Json):
    """`EXPORT_FILE`.

    `made_from`: a hash of weights and flags. `trained`: whether a run left the weights. `bases`: the
    names of the folders they come from, back to the first base.
    """

    made_from: Text
    trained: bool
    bases: list[Text]


class PromptFile(TypedDict, total=False, extra_items=Json):
    """prompt.json of a saved group of completions: the record that they answer."""

    source: Text | None
    tag: list[Text] | Text | None
    degradation: list[Text] | Text | None
    problem: Text | None
    crop: Annotated[list[int], Len(4, 4)] | None


Rewards = dict[Text, list[float | None]]  # rewards.json beside it: a reward's name -> of each completion


def run_of(folder: Path) -> Path | None:
    """Return the folder of the run that left `folder`: itself or, for a checkpoint, the one it lies in.

    None where it is none of a run.
    """
    places = [folder, *([folder.absolute().parent] if (folder / STATE_FILE).is_file() else [])]
    return next((place for place in places if (place / SETTINGS_FILE).is_file()), None)


def lineage(folder: Path) -> list[tuple[Path, Settings]]:
    """Return `folder`, what its run went on from, and so on to the first base that is still there.

    Each with the settings of the run that left it, none where it is none of a run. The last one may
    not exist any more.
    """
    found: dict[Path, Settings] = {}
    place: Path | None = folder
    while place is not None and place not in found:
        run = run_of(place)
        found[place] = read_json(run / SETTINGS_FILE, Settings) if run else {}
        base = found[place].get("model_name_or_path")
        place = Path(str(base)) if base else None
    return list(found.items())


def export_record(folder: Path) -> ExportFile:
    """Return what an exported folder says of itself; nothing where it is none."""
    return read_json(folder / EXPORT_FILE, ExportFile) if (folder / EXPORT_FILE).is_file() else {}


def differences_of(folder: Path) -> DifferencesFile | None:
    """Return how the run that left `folder` differed from a profile; None where it isn't known.

    `folder`: of a run, a checkpoint or an exported model.
    """
    for place in (folder, run_of(folder)):
        if place is not None and (place / DIFFERENCES_FILE).is_file():
            return read_json(place / DIFFERENCES_FILE, DifferencesFile)
    return None


def was_trained(folder: Path) -> bool:
    """Whether the weights in `folder` are what a run has left: its folder, a checkpoint or an export."""
    is_of_run = any((folder / name).is_file() for name in (LOG_FILE, STATE_FILE))
    return is_of_run or export_record(folder).get("trained", False)
