"""Tags, descriptions and labels from a model, which is asked for photos or crops in batches.

A photo that it fails on is asked for again alone, and then listed. For each image the model gives
tags (a list, or one comma-separated text), a description of each level of the chain
(an object, or a list), or the five labels of its degradation (a list). The answers become files of
JSON lines, which sidecars.py reads. The model runs in a process of its own (model_process.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import atomic_file
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Ge, Json, Le, Text, fields_of
from realsr_r1.data.building.annotated import AnnotatedJob
from realsr_r1.data.building.jobs import PhotoJob
from realsr_r1.data.building.parts import Part
from realsr_r1.data.photos.model_process import ModelFailure, ModelProcess, Unreadable
from realsr_r1.data.photos.sidecars import (
    LEVELS,
    JsonLines,
    Reader,
    checked_descriptions,
    checked_labels,
    checked_tags,
)
from realsr_r1.data.photos.sources import Photo

COLUMNS = {"tag": "tag", "description": "descriptions", "label": "degradation"}  # what answers become


@dataclass(frozen=True)
class AnnotationConfig:
    """The settings in configs/annotation/default.yaml, which explains them.

    `tagger`, `captioner`, `degradation_labeller`: the settings that their factories get.
    """

    batch_size: Annotated[int, Ge(1), Le(4096)] = 8
    longest_side_px: Annotated[int, Ge(32), Le(65536)] = 768
    timeout_seconds: Annotated[float, Ge(0.1), Le(86400)] = 300
    retries: Annotated[int, Ge(0), Le(100)] = 2
    tagger: dict[Text, Json] = field(default_factory=dict)
    captioner: dict[Text, Json] = field(default_factory=dict)
    degradation_labeller: dict[Text, Json] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, path: Path) -> AnnotationConfig:
        """Read the settings. Raises `UserError` that names the file and the key."""
        return cls(**read_yaml(path, fields_of(cls), "--annotation"))


def annotating(parts: Sequence[Part], asked: dict[str, ModelProcess],
               config: AnnotationConfig, levels: tuple[str, ...] = LEVELS) -> Callable[[Part, PhotoJob],
                                                                                       PhotoJob] | None:
    """Return the argument `prepare` of `make_missing_parts`: it has a part's photos annotated.

    A photo is annotated once, though several parts may hold it. `levels`: the levels of
    descriptions.
    """
    if not asked:
        return None
    photos: dict[int, dict[str, Photo]] = {}
    for part in parts:
        photos.setdefault(part.unit, {}).update((photo.name, photo) for photo in part.photos)

    def prepare(part: Part, job: PhotoJob) -> PhotoJob:
        for kind, model in asked.items():
            path = job.work / "parts" / f"unit-{part.unit:05d}.{kind}.jsonl"
            annotate(list(photos[part.unit].values()), kind, model, config, path, levels)
            job = replace(job, **{"tags" if kind == "tag" else "descriptions":
                                  JsonLines.index(path, kind, levels)})
        return job

    return prepare


def annotating_crops(asked: dict[str, ModelProcess], config: AnnotationConfig,
                     levels: tuple[str, ...] = LEVELS) -> Callable[[Part, AnnotatedJob], AnnotatedJob]:
    """Return the argument `prepare` of `make_missing_parts`: it has a part's drawn crops annotated."""
    def prepare(part: Part, job: AnnotatedJob) -> AnnotatedJob:
        readers: dict[str, Reader] = {}
        for kind, model in asked.items():
            path = job.work / "parts" / f"part-{part.number:05d}.{kind}.jsonl"
            annotate(job.crops(part), kind, model, config, path, levels)
            readers[COLUMNS[kind]] = JsonLines.index(path, kind, levels)
        return replace(job, readers=readers)

    return prepare


def try_out(asked: dict[str, ModelProcess], photos: Sequence[Photo]) -> None:
    """Start the models, and ask a labeller about one of the photos, before the long work.

    Raises `UserError` where one can't be made, or where the labels are not such.
    """
    for kind, model in asked.items():
        model.start()
        for photo in photos if kind == "label" else ():
            try:
                [answer] = model.answers([photo])
            except Unreadable:  # which isn't the model's fault
                continue
            except ModelFailure as failure:
                raise UserError(f"{model.name} {failure}") from failure
            found = _checked(answer, kind, model.name, ())
            if "error" in found:
                raise UserError(found["error"])
            break


def annotate(photos: Sequence[Photo], kind: str, model: ModelProcess, config: AnnotationConfig, path: Path,
             levels: tuple[str, ...] = LEVELS) -> None:
    """Write what `model` answers for the photos to `path`, one JSON line for each photo.

    A photo that the model fails on gets a line with the reason. `kind`: tag or description. Does
    nothing when the file is there.
    """
    if path.is_file():
        return
    answers: dict[str, dict[str, Any]] = {}
    for start in range(0, len(photos), config.batch_size):
        batch = photos[start:start + config.batch_size]
        answers.update(_ask(batch, kind, model, levels))
        for photo in batch:
            for _ in range(config.retries):
                if "error" in answers[photo.name]:
                    answers.update(_ask([photo], kind, model, levels))
    with atomic_file(path) as partial:
        partial.write_text("".join(json.dumps({"image": photo.name, **answers[photo.name]},
                                              ensure_ascii=False) + "\n"
                                   for photo in photos), encoding="utf-8")


def _ask(photos: Sequence[Photo], kind: str, model: ModelProcess,
         levels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return name of a photo -> the keys of the answer, or `error`."""
    try:
        answers = model.answers(photos)
    except Unreadable as failure:
        if len(photos) == 1:
            return {photos[0].name: {"error": str(failure)}}
        return {name: found for photo in photos for name, found in _ask([photo], kind, model, levels).items()}
    except ModelFailure as failure:
        return {photo.name: {"error": f"{model.name} {failure}"} for photo in photos}
    return {photo.name: _checked(answer, kind, model.name, levels)
            for photo, answer in zip(photos, answers, strict=True)}


def _checked(answer: Any, kind: str, name: str, levels: tuple[str, ...]) -> dict[str, Any]:
    try:
        if kind == "label":
            return {"degradation": checked_labels(answer, "the answer")}
        values = (checked_tags(answer, "the answer") if kind == "tag"
                  else checked_descriptions(answer, "the answer", levels))
    except UserError as error:
        return {"error": f"{name} gave no {kind}s that can be used: {error} ({str(answer)[:80]!r})"}
    return {"tag": list(dict.fromkeys(values))} if kind == "tag" else dict(zip(levels, values, strict=True))


@contextmanager
def models(specs: dict[str, str | None], config: AnnotationConfig,
           levels: tuple[str, ...] = LEVELS) -> Iterator[dict[str, ModelProcess]]:
    """Start the models that are named, by kind, and end them when the block ends.

    A captioner's settings get `levels`, the levels that it has to describe.
    """
    settings = {"tag": config.tagger, "description": {**config.captioner, "levels": list(levels)},
                "label": config.degradation_labeller}
    made = {kind: ModelProcess(spec, kind, settings[kind], config.timeout_seconds, config.longest_side_px)
            for kind, spec in specs.items() if spec}
    try:
        yield made
    finally:
        for model in made.values():
            model.end()
