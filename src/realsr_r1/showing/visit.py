"""One visit: a photo is read, checked, restored in a thread of its own, and told about as it goes.

Knows the `Restorer` and nothing of pages.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.pictures import Picture, decode_picture
from realsr_r1.showing.turns import Turns

if TYPE_CHECKING:
    from realsr_r1.restoring import Restoration, Restorer
    from realsr_r1.restoring.restoration import Piece

MOST_PHOTO_PIXELS = 64_000_000  # px of a photo that is decoded at all, as for data sets
BEAT = 0.5  # seconds between two looks at the clock
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # that the page offers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What a visitor chose: fields of `RestoreOptions`, and two of `RolloutConfig`."""

    scale: float = 1.0
    tile_text: str = "shared"
    color_fix: str | None = None
    num_samples: int = 1
    temperature: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Moment:
    """How far a restoration is.

    `ahead`: photos that come first. `pieces`: the sections written so far, by name; the image of a
    section may be replaced by a larger one. `rows_done` of `rows`: how much of the photo is written
    (the whole photo is a row, and so is each tile). `seconds`: since it began. `result`: at the end.
    """

    ahead: int = 0
    pieces: dict[str, Piece] = field(default_factory=dict)
    rows_done: int = 0
    rows: int = 0
    seconds: float = 0.0
    result: Restoration | None = None


def read_photo(path: str | Path) -> Picture:
    """Read a visitor's file. Raises `UserError` that calls it by its name, without its folder."""
    with open(path, "rb") as file:
        return decode_picture(file, Path(path).name, MOST_PHOTO_PIXELS)


def result_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height in px of a photo's result."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def best_scale(size: tuple[int, int], most_pixels: int) -> float:
    """1, or for a large photo the largest smaller scale that keeps its result below `most_pixels`."""
    allowed = [scale for scale in SCALES if scale <= 1 and _fits(size, scale, most_pixels)]
    return max(allowed, default=SCALES[0])


def check_size(size: tuple[int, int], scale: float, most_pixels: int) -> None:
    """Raise `UserError` when the result would have more than `most_pixels` px."""
    if _fits(size, scale, most_pixels):
        return
    width, height = result_size(size, scale)
    allowed = [each for each in SCALES if _fits(size, each, most_pixels)]
    advice = f"choose {scale_name(max(allowed))} or less" if allowed else "scale the photo down first"
    raise UserError(f"The result would have {width} × {height} = {width * height / 1e6:.1f} million pixels; "
                    f"this page makes at most {most_pixels / 1e6:.1f} million: {advice}.")


def scale_name(scale: float) -> str:
    """How the page writes a scale."""
    return {0.25: "¼ ×", 0.5: "½ ×"}.get(scale, f"{scale:g} ×")


def restore(restorer: Restorer, turns: Turns, picture: Picture, name: str, wish: Wish) -> Iterator[Moment]:
    """Restore a photo when its turn comes, and yield how far it is, at least once a second.

    When the iterator is closed before its end (the visitor left), the restoration stops at its next
    section or tile, and only then the next visitor's begins. Raises `UserError` when the line is
    full or the photo can't be restored.
    """
    restorer = _with_sampling(restorer, wish)
    turn = turns.take()
    worker = _Worker(restorer, picture, name, wish)
    try:
        while ahead := turn.wait(2 * BEAT):
            yield Moment(ahead)
        worker.start(turn.end)
        yield from worker.moments()
    finally:
        worker.stop()
        if not worker.was_started:
            turn.end()


def _fits(size: tuple[int, int], scale: float, most_pixels: int) -> bool:
    width, height = result_size(size, scale)
    return width * height <= most_pixels


def _with_sampling(restorer: Restorer, wish: Wish) -> Restorer:
    """The same restorer with the visitor's temperature and seed."""
    from realsr_r1.restoring import Restorer
    from realsr_r1.rollout import RolloutEngine

    engine = restorer.engine
    config = dataclasses.replace(engine.config, temperature=wish.temperature, seed=wish.seed)
    return Restorer(restorer.processor, RolloutEngine(engine.policy, restorer.processor, config),
                    restorer.source, restorer.batches.size)


class _Left(Exception):
    """The visitor has left: ends the restoration."""


class _Worker:
    """Runs `Restorer.stream` in a thread and hands on what it yields."""

    def __init__(self, restorer: Restorer, picture: Picture, name: str, wish: Wish):
        self.restorer, self.picture, self.name, self.wish = restorer, picture, name, wish
        self.was_started = False
        self._news: queue.Queue[tuple[str, object]] = queue.Queue()
        self._left = threading.Event()

    def start(self, when_done: Callable[[], None]) -> None:
        self.was_started = True
        threading.Thread(target=self._work, args=(when_done,), daemon=True).start()

    def stop(self) -> None:
        self._left.set()

    def moments(self) -> Iterator[Moment]:
        moment, start = Moment(), time.monotonic()
        while moment.result is None:
            try:
                kind, news = self._news.get(timeout=BEAT)
            except queue.Empty:
                kind, news = "beat", None
            if kind == "error":
                raise news
            if kind == "piece":
                moment = dataclasses.replace(moment, pieces={**moment.pieces, news.name: news})
            elif kind == "rows":
                moment = dataclasses.replace(moment, rows=moment.rows + news[0],
                                             rows_done=moment.rows_done + news[1])
            elif kind == "result":
                moment = dataclasses.replace(moment, result=news)
            moment = dataclasses.replace(moment, seconds=time.monotonic() - start)
            yield moment

    def _work(self, when_done: Callable[[], None]) -> None:
        from realsr_r1.restoring import Restoration

        options = {name: getattr(self.wish, name) for name in ("tile_text", "color_fix", "num_samples")}
        try:
            for item in self.restorer.stream(self.picture.image, self.wish.scale, name=self.name,
                                             progress=self._tell_rows, **options):
                self._check()
                self._news.put(("result" if isinstance(item, Restoration) else "piece", item))
        except _Left:
            pass
        except UserError as error:
            self._news.put(("error", error))
        except Exception as error:  # whatever it is, the page goes on for the others
            logger.exception("a restoration failed")
            told = UserError(f"The restoration failed on the server ({error}); its log says more.")
            self._news.put(("error", told))
        finally:
            when_done()

    def _tell_rows(self, rows: int, done: int) -> None:
        self._check()
        self._news.put(("rows", (rows, done)))

    def _check(self) -> None:
        if self._left.is_set():
            raise _Left
