"""Tags and descriptions from a model: asked in batches in a process of its own, so that one that hangs or crashes can be ended.

A model is what a factory makes: `factory(settings) -> model`, `model(images) -> answers`, one for each PIL image: tags (a list,
or one comma-separated text), or the texts rough, middle and final (an object, or a list). Models of the Hugging Face Hub are in
hf_annotators.py. Answers become files of JSON lines, which sidecars.py reads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from realsr_r1.data.jobs import PhotoJob
from realsr_r1.data.parts import Part
from realsr_r1.data.photos import decode
from realsr_r1.data.processes import end_with_parent
from realsr_r1.data.sidecars import DESCRIPTION_KEYS, JsonLines, checked_descriptions, checked_tags
from realsr_r1.data.sources import Photo
from realsr_r1.errors import UserError
from realsr_r1.files import atomic_file, escaped, read_yaml

NUMBERS = {"batch_size": (int, 1, 4096), "longest_side_px": (int, 32, 65536), "timeout_seconds": (float, 0.1, 86400),
           "retries": (int, 0, 100)}  # kind, least, most


@dataclass(frozen=True)
class AnnotationConfig:
    """See configs/annotation/default.yaml. `tagger`, `captioner`: what their factories are given."""

    batch_size: int = 8
    longest_side_px: int = 768
    timeout_seconds: float = 300
    retries: int = 2
    tagger: dict[str, Any] = field(default_factory=dict)
    captioner: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, path: Path) -> AnnotationConfig:
        """Raises `UserError` that names the file and the key."""
        values = read_yaml(path, "--annotation")
        known = (*NUMBERS, "tagger", "captioner")
        for key, value in values.items() if isinstance(values, dict) else [("", None)]:
            if key not in known:
                raise UserError(f"unknown key {key!r} in {path}; known ones: {', '.join(known)}")
            if key in NUMBERS:
                _check_number(value, *NUMBERS[key], f"{key} in {path}")
            elif not isinstance(value, dict):
                raise UserError(f"{key} in {path} must hold settings as key: value")
        return cls(**values)


def _check_number(value: Any, kind: type, least: float, most: float, where: str) -> None:
    kinds = (int, float) if kind is float else int
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{where} is {value!r}; it must be a {'whole ' if kind is int else ''}number from {least} to {most}")


def annotating(parts: Sequence[Part], asked: dict[str, ModelProcess],
               config: AnnotationConfig) -> Callable[[Part, PhotoJob], PhotoJob] | None:
    """`prepare` for `make_missing_parts`: has a part's photos annotated (a photo once, though several parts may hold it)."""
    if not asked:
        return None
    photos: dict[int, dict[str, Photo]] = {}
    for part in parts:
        photos.setdefault(part.unit, {}).update((photo.name, photo) for photo in part.photos)

    def prepare(part: Part, job: PhotoJob) -> PhotoJob:
        for kind, model in asked.items():
            path = job.work / "parts" / f"unit-{part.unit:05d}.{kind}.jsonl"
            annotate(list(photos[part.unit].values()), kind, model, config, path)
            job = replace(job, **{"tags" if kind == "tag" else "descriptions": JsonLines.index(path, kind)})
        return job

    return prepare


def annotate(photos: Sequence[Photo], kind: str, model: ModelProcess, config: AnnotationConfig, path: Path) -> None:
    """Write what `model` says of the photos to `path`, a JSON line each; of a photo it fails on, why.

    `kind`: tag or description. Does nothing when the file is there.
    """
    if path.is_file():
        return
    answers: dict[str, dict[str, Any]] = {}
    for start in range(0, len(photos), config.batch_size):
        batch = photos[start:start + config.batch_size]
        answers.update(_ask(batch, kind, model))
        for photo in batch:
            for _ in range(config.retries):
                if "error" in answers[photo.name]:
                    answers.update(_ask([photo], kind, model))
    with atomic_file(path) as partial:
        partial.write_text("".join(json.dumps({"image": photo.name, **answers[photo.name]}, ensure_ascii=False) + "\n"
                                   for photo in photos), encoding="utf-8")


def _ask(photos: Sequence[Photo], kind: str, model: ModelProcess) -> dict[str, dict[str, Any]]:
    """Name -> the answer's keys, or `error`."""
    try:
        answers = model.answers(photos)
    except ModelFailure as failure:
        return {photo.name: {"error": f"{model.name} {failure}"} for photo in photos}
    return {photo.name: _checked(answer, kind, model.name) for photo, answer in zip(photos, answers, strict=True)}


def _checked(answer: Any, kind: str, name: str) -> dict[str, Any]:
    try:
        values = checked_tags(answer, "the answer") if kind == "tag" else checked_descriptions(answer, "the answer")
    except UserError as error:
        return {"error": f"{name} gave no {kind}s that can be used: {error} ({str(answer)[:80]!r})"}
    return {"tag": list(dict.fromkeys(values))} if kind == "tag" else dict(zip(DESCRIPTION_KEYS, values, strict=True))


# --- the process ---

class ModelFailure(Exception):
    """The model raised, took too long, or died; the message says which, as the rest of a sentence."""


class ModelProcess:
    """A model in a process of its own, started when it is first asked, and again after it had to be ended."""

    def __init__(self, spec: str, kind: str, config: AnnotationConfig) -> None:
        self.spec, self.kind, self.config = spec, kind, config
        self.name = f"{'tagger' if kind == 'tag' else 'captioner'} {spec}"
        self._process: Any = None
        self._connection: Any = None

    def answers(self, photos: Sequence[Photo]) -> list[Any]:
        """One answer a photo, unchecked. Raises `ModelFailure`; `UserError` when the model can't be made at all."""
        if self._process is None:
            self._start()
        try:
            self._connection.send(list(photos))
            if not self._connection.poll(self.config.timeout_seconds):
                self.end()
                raise ModelFailure(f"took longer than {self.config.timeout_seconds:g} s")
            outcome, said = self._connection.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise ModelFailure("ended its process") from error
        if outcome == "failed":
            raise ModelFailure(f"failed: {said}")
        try:
            answers = json.loads(said)
        except (ValueError, RecursionError) as error:
            raise ModelFailure(f"gave an answer that can't be read ({error})") from error
        if not isinstance(answers, list) or len(answers) != len(photos):
            raise ModelFailure(f"gave {answers!r:.80} for {len(photos)} photo(s)")
        return answers

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        settings = self.config.tagger if self.kind == "tag" else self.config.captioner
        self._process = context.Process(target=_serve, args=(theirs, self.spec, self.kind, settings, self.config.longest_side_px,
                                                             os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        try:
            outcome, value = self._connection.recv()  # loading has no limit: weights may have to be downloaded
        except (EOFError, OSError):
            outcome, value = "failed", "its process ended while it was made"
        if outcome == "failed":
            self.end()
            raise UserError(f"{self.name} can't be used ({value}); give package.module:factory or a model of the Hugging Face Hub")

    def end(self) -> None:
        """End the process, hanging or not."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


@contextmanager
def models(specs: dict[str, str | None], config: AnnotationConfig) -> Iterator[dict[str, ModelProcess]]:
    """The models that are named, by kind; ended at the end."""
    made = {kind: ModelProcess(spec, kind, config) for kind, spec in specs.items() if spec}
    try:
        yield made
    finally:
        for model in made.values():
            model.end()


def _serve(connection: Any, spec: str, kind: str, settings: dict[str, Any], longest_side: int, parent: int) -> None:
    """What runs in the process. Only texts leave it: answers as JSON, for objects of the model's might not arrive."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which ends this process
    try:
        model = _make(spec, kind, settings)
    except BaseException as error:
        connection.send(("failed", _line(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            photos = connection.recv()
        except EOFError:
            return
        try:
            images = [decode(photo) for photo in photos]
            for image in images:
                image.thumbnail((longest_side, longest_side))
            outcome = ("answered", json.dumps(model(images)))
        except BaseException as error:  # a KeyboardInterrupt or SystemExit in here is the model's, too
            outcome = ("failed", _line(error))
        connection.send(outcome)


def _line(error: BaseException) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return escaped(" ".join(f"{kind}{error}".split())[:300])


def _make(spec: str, kind: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    if ":" in spec:
        from realsr_r1.rewards.experts import import_named

        return import_named(spec, "factory", ["a model of the Hugging Face Hub"])(settings)
    from realsr_r1.data import hf_annotators

    return hf_annotators.tagger(spec, settings) if kind == "tag" else hf_annotators.captioner(spec, settings)
