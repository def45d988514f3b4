"""Runs a model in a process of its own, which can be ended when the model hangs or misbehaves.

A model is made by a factory: `factory(settings)` returns the model, and `model(images)` returns one
answer for each PIL image. Models of the Hugging Face Hub are in annotators.py; annotation.py checks
the answers.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import parsed_json
from realsr_r1.core.parents import end_with_parent
from realsr_r1.core.texts import escaped
from realsr_r1.data.photos.decoding import decode
from realsr_r1.data.photos.sources import Photo

# What is asked for -> what the model that gives it is called.
MODELS = {"tag": "tagger", "description": "captioner", "label": "degradation labeller"}


class ModelFailure(Exception):
    """The model raised an exception, took too long, or died.

    The message is the rest of a sentence that begins with the model's name.
    """


class Unreadable(ModelFailure):
    """A photo could not be decoded, so the model was not asked. The message is the reason."""


class ModelProcess:
    """A model in a process of its own.

    The process starts at the first question, and again after it had to be ended. `spec`:
    package.module:factory, or the name of a model on the Hugging Face Hub. `kind`: a key of
    `MODELS`. `timeout_seconds`: the limit for one call of the model. `longest_side_px`: photos
    are scaled down to this before the model sees them.
    """

    def __init__(self, spec: str, kind: str, settings: dict[str, Any], timeout_seconds: float,
                 longest_side_px: int) -> None:
        self.spec, self.kind, self.settings = spec, kind, settings
        self.timeout_seconds, self.longest_side_px = timeout_seconds, longest_side_px
        self.name = f"{MODELS[kind]} {spec}"
        self._process: Any = None
        self._connection: Any = None
        self._asked = 0

    def answers(self, photos: Sequence[Photo]) -> list[Any]:
        """One answer for each photo; what it holds is not checked.

        Raises `ModelFailure` when this call fails, and `UserError` when the model can't be made.
        """
        self.start()
        try:
            self._asked += 1
            self._connection.send((self._asked, list(photos)))
            outcome, said = self._heard(self._asked)
        except (EOFError, OSError) as error:
            self.end()
            raise ModelFailure("ended its process") from error
        if outcome == "unreadable":
            raise Unreadable(said)
        if outcome == "failed":
            raise ModelFailure(f"failed: {said}")
        try:
            answers = parsed_json(said, "its answer", Any)  # annotation.py checks each photo's
        except UserError as error:
            raise ModelFailure(f"gave an answer that can't be read ({error})") from error
        if not isinstance(answers, list) or len(answers) != len(photos):
            raise ModelFailure(f"gave {answers!r:.80} for {len(photos)} photo(s)")
        return answers

    def _heard(self, number: int) -> tuple[str, str]:
        """The outcome that the process sends for request `number`.

        Other messages are passed over: the model may have forked a copy of the process, which sends
        its own.
        """
        until = time.monotonic() + self.timeout_seconds
        while wait([self._connection, self._process.sentinel], max(0.0, until - time.monotonic())):
            answered, outcome, said = self._received()
            if answered == number:
                return outcome, said
        self.end()
        raise ModelFailure(f"took longer than {self.timeout_seconds:g} s")

    def _received(self) -> tuple[int, str, str]:
        """The message that has arrived. Raises `EOFError` when the process has ended without one.

        The connection alone would not tell, for forked copies of the process may keep it open.
        """
        if not self._connection.poll():
            raise EOFError
        return self._connection.recv()

    def start(self) -> None:
        """Start the process, if it isn't running. Raises `UserError` when the model can't be made."""
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(
            theirs, self.spec, self.kind, self.settings, self.longest_side_px, os.getpid()))
        self._process.start()
        theirs.close()
        try:
            # loading has no limit: weights may have to be downloaded
            wait([self._connection, self._process.sentinel])
            _, outcome, value = self._received()
        except (EOFError, OSError):
            outcome, value = "failed", "its process ended while it was made"
        if outcome == "failed":
            self.end()
            raise UserError(f"{self.name} can't be used ({value}); give package.module:factory"
                            f"{'' if self.kind == 'label' else ' or a model of the Hugging Face Hub'}")

    def end(self) -> None:
        """End the process, even if it hangs, and the processes that it started."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # in case it had no process group of its own yet
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Any, spec: str, kind: str, settings: dict[str, Any], longest_side: int,
           parent: int) -> None:
    """The loop that runs in the process.

    It sends only strings, with answers as JSON: the model's own objects might not be picklable.
    """
    home = os.getcwd()
    os.setpgid(0, 0)
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which ends this process
    own, number = os.getpid(), 0
    try:
        model = _make(spec, kind, settings)
        outcome = ("ready", "")
    except BaseException as error:
        outcome = ("failed", _line(error))
    while True:
        if os.getpid() != own:  # a copy of this process that the factory or the model made and left running
            os._exit(0)
        connection.send((number, *outcome))
        if outcome[0] == "failed" and number == 0:
            return
        try:
            number, photos = connection.recv()
        except EOFError:
            return
        try:
            with contextlib.chdir(home):  # photos' paths may be relative, and the model elsewhere by now
                images = [_shown(photo, longest_side) for photo in photos]
            outcome = ("answered", json.dumps(model(images)))
        except UnreadablePhoto as error:
            outcome = ("unreadable", _line(error))
        except BaseException as error:  # a KeyboardInterrupt or SystemExit in here is the model's, too
            outcome = ("failed", _line(error))


class UnreadablePhoto(UserError):
    """A photo can't be decoded."""


def _shown(photo: Photo, longest_side: int) -> Any:
    try:
        image = decode(photo)
    except UserError as error:
        raise UnreadablePhoto(str(error)) from error
    image.thumbnail((longest_side, longest_side))
    return image


def _line(error: BaseException) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    try:
        said = str(error)
    except Exception:  # an exception of the model's that can't be printed
        said = "(it can't be printed)"
    line = " ".join(f"{kind}{said}".split())[:300]
    return escaped("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))


def _make(spec: str, kind: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    if ":" in spec:
        from realsr_r1.core.import_named import import_named

        return import_named(spec, "factory", ["a model of the Hugging Face Hub"])(settings)
    if kind == "label":
        raise UserError(f"{spec!r} is no package.module:factory")
    from realsr_r1.data.photos import annotators as hf_annotators

    return hf_annotators.tagger(spec, settings) if kind == "tag" else hf_annotators.captioner(spec, settings)
