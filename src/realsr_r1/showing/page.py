"""The demo's page: what stands where, and what happens when something is chosen or pressed.

Knows gradio, which only the command `demo` imports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gradio as gr

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.images import scale_to
from realsr_r1.core.picture_writer import write_picture
from realsr_r1.core.pictures import Picture
from realsr_r1.showing import visit
from realsr_r1.showing.render import EMPTY_CHAIN, ChainView, html, message_html, photo_html, progress_html
from realsr_r1.showing.turns import Turns

if TYPE_CHECKING:
    from realsr_r1.restoring import Restorer

PRIVATE = "Nothing leaves this machine."
SHARED = "What you send passes through gradio's servers."
NOTHING = '<div class="nothing">Your photo appears here.</div>'
CHAIN_HEAD = "<h2>What the model sees and draws</h2>"
# On a narrow screen the picture stands below the button: go there.
SHOW_STAGE = """(...values) => {
  if (window.innerWidth < 900) document.getElementById("stage").scrollIntoView({behavior: "smooth"});
  return values; }"""
KEPT_SECONDS = 3600  # how long gradio keeps a visitor's files
MODELS_OWN = "model"  # no colour fix is chosen: the model folder's setting counts
COLOR_FIXES = [("as the model has it", MODELS_OWN), ("follow the photo (wavelet)", "wavelet"),
               ("mean and spread (adain)", "adain"), ("the model's own", "none")]
TILE_TEXTS = [("written once, on the whole photo", "shared"), ("written anew for each tile", "own")]
Update = dict[Any, Any]  # component -> its new value or properties


@dataclass(frozen=True)
class Limits:
    """`most_pixels`: of a result. `most_waiting`: visitors behind the one whose photo is restored."""

    most_pixels: int
    most_waiting: int


class Page:
    """The page of one restorer. `blocks` is what gradio launches.

    `model`: what the page calls it. `examples`: photos to try. `is_shared`: whether the page has a
    public address, too.
    """

    def __init__(self, restorer: Restorer, model: str, limits: Limits, examples: list[Path],
                 is_shared: bool = False):
        self.restorer, self.limits, self.example_paths = restorer, limits, examples
        self.turns = Turns(limits.most_waiting)
        self.chain = restorer.processor.chain
        with gr.Blocks(title="RealSR-R1", analytics_enabled=False,
                       delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as self.blocks:
            gr.HTML(html("head", SHARED if is_shared else PRIVATE, model), elem_id="head")
            self.size = gr.State(None)
            with gr.Row(elem_id="desk"):
                with gr.Column(scale=4, min_width=300, elem_id="side"):
                    self._choices()
                with gr.Column(scale=7, min_width=300, elem_id="stage"):
                    self._results()
            gr.HTML(CHAIN_HEAD, elem_id="chain-head")
            self.chain_view = gr.HTML(EMPTY_CHAIN, elem_id="chain")
            self._wire()

    # What stands where

    def _choices(self) -> None:
        self.upload = gr.File(label="Photo", elem_id="upload", height=148, type="filepath")
        if self.example_paths:
            gr.HTML('<div class="label">Or take an example</div>')
        self.examples = gr.Gallery([str(path) for path in self.example_paths], show_label=False,
                                   columns=4, height="auto", object_fit="cover", allow_preview=False,
                                   interactive=False, buttons=[], elem_id="examples", format="png",
                                   visible=bool(self.example_paths))
        self.scale = gr.Radio([(visit.scale_name(scale), scale) for scale in visit.SCALES], value=1.0,
                              label="Size of the result", elem_id="scale")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            config = self.restorer.engine.config
            self.temperature = gr.Slider(0.1, 1.5, value=config.temperature, step=0.05, label="Temperature",
                                         info="How freely the model draws. Low is safe, high is varied.")
            self.seed = gr.Number(config.seed, precision=0, minimum=0, label="Seed",
                                  info="The same seed draws the same picture.")
            self.tile_text = gr.Radio(TILE_TEXTS, value="shared", label="Words of a large photo")
            self.color_fix = gr.Dropdown(COLOR_FIXES, value=MODELS_OWN, label="Colours")
            self.num_samples = gr.Slider(1, 4, value=1, step=1, label="Samples",
                                         info="The one closest to the photo is taken; each takes its time.")
        with gr.Row(elem_id="buttons"):
            self.run = gr.Button("Restore", variant="primary", interactive=False, elem_id="run",
                                 min_width=120)
            self.stop = gr.Button("Stop", visible=False, elem_id="stop", min_width=90, scale=0)
        self.status = gr.HTML("", elem_id="status")

    def _results(self) -> None:
        self.photo = gr.HTML(NOTHING, elem_id="photo")
        self.slider = gr.ImageSlider(label="Before and after", show_label=False, visible=False,
                                     interactive=False, elem_id="slider", type="filepath", format="png",
                                     max_height=600, buttons=["fullscreen"])
        self.caption = gr.HTML("", elem_id="caption")
        with gr.Row(elem_id="downloads"):
            self.download = gr.DownloadButton("Download image", visible=False, elem_id="download")
            self.download_chain = gr.DownloadButton("Download chain", visible=False,
                                                    elem_id="download-chain")

    def _wire(self) -> None:
        shown = [self.photo, self.slider, self.caption, self.status, self.run, self.stop, self.download,
                 self.download_chain, self.chain_view]
        chosen = [self.size, self.upload, self.scale, *shown]
        settings = [self.scale, self.temperature, self.seed, self.tile_text, self.color_fix,
                    self.num_samples]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        running = self.run.click(self._restore, [self.upload, *settings], shown, api_name="restore",
                                 show_progress="hidden", concurrency_limit=None, js=SHOW_STAGE)
        self.upload.upload(self._choose, self.upload, chosen, cancels=[running], **quiet)
        self.upload.clear(self._clear, None, chosen, cancels=[running], **quiet)
        self.examples.select(self._take_example, None, chosen, cancels=[running], **quiet)
        self.scale.input(self._measure, [self.size, self.scale], [self.caption, self.status, self.run],
                         **quiet)
        self.stop.click(self._stopped, None, [self.status, self.run, self.stop], cancels=[running], **quiet)

    # What happens

    def _clear(self) -> Update:
        return {**self._without_result(), **self._measure(None, 1.0), self.size: None, self.upload: None,
                self.photo: self._shown(NOTHING)}

    def _choose(self, path: str | None) -> Update:
        """Show a photo, or say why it can't be read."""
        if path is None:
            return self._clear()
        try:
            picture = visit.read_photo(path)
        except UserError as error:
            return {**self._clear(), self.status: message_html(f"{error}.", "bad")}
        size = picture.image.size
        scale = visit.best_scale(size, self.limits.most_pixels)
        return {**self._without_result(), **self._measure(size, scale), self.size: size, self.upload: path,
                self.scale: scale, self.photo: self._shown(photo_html(picture.image))}

    def _take_example(self, event: gr.SelectData) -> Update:
        return self._choose(str(self.example_paths[event.index]))

    def _measure(self, size: tuple[int, int] | None, scale: float) -> Update:
        """Say how large the result will be, and let it be restored if that isn't too large."""
        if size is None:
            return {self.caption: "", self.status: "", self.run: gr.update(interactive=False)}
        try:
            visit.check_size(size, scale, self.limits.most_pixels)
            status = ""
        except UserError as error:
            status = message_html(str(error), "bad")
        before, after = (f"{width} × {height} px"
                         for width, height in (size, visit.result_size(size, scale)))
        caption = html("caption", f"The photo has {before}, the result will have {after}.")
        return {self.caption: caption, self.status: status, self.run: gr.update(interactive=not status)}

    def _restore(self, path: str | None, scale: float, temperature: float, seed: int, tile_text: str,
                 color_fix: str, num_samples: int) -> Iterator[Update]:
        """Restore the photo, and show each section as it is written."""
        try:
            if path is None:
                raise UserError("Choose a photo first.")
            picture = visit.read_photo(path)
            visit.check_size(picture.image.size, scale, self.limits.most_pixels)
            wish = visit.Wish(scale, tile_text, None if color_fix == MODELS_OWN else color_fix,
                              int(num_samples), temperature, int(seed or 0))
            view, shown = ChainView(self.chain, picture.image.size), None
            for moment in visit.restore(self.restorer, self.turns, picture, Path(path).name, wish):
                update = {self.status: progress_html(self.chain, moment)}
                if shown is None:
                    update |= {**self._without_result(), self.run: gr.update(interactive=False),
                               self.stop: gr.update(visible=True), self.photo: gr.update(visible=True)}
                if shown != (moment.pieces, moment.ahead > 0):
                    update[self.chain_view] = view.html(moment)
                    shown = moment.pieces, moment.ahead > 0
                yield update
            with TemporaryDirectory() as folder:
                yield {**self._result(Path(folder), Path(path).stem, picture, moment), **self._ready()}
        except UserError as error:
            yield {self.status: message_html(str(error), "bad"), **self._ready()}

    def _result(self, folder: Path, stem: str, picture: Picture, moment: visit.Moment) -> Update:
        """Write the result's files into `folder` and show them."""
        result = moment.result
        before, after = folder / "before.png", folder / "after.png"
        scale_to(picture.image, result.final.size).save(before, compress_level=1)
        result.final.save(after, compress_level=1)
        image, chain = folder / f"{stem}-restored.png", folder / f"{stem}-chain.json"
        write_picture(image, result.final, picture)
        write_json(chain, {"photo": stem, "text": result.text, "tiles": result.tiles, "scores": result.scores,
                           "settings": {**result.settings, "model": Path(result.settings["model"]).name}})
        width, height = result.final.size
        done = f"Restored in {moment.seconds:.0f} s."
        notes = " ".join(note for note in (picture.note, result.note) if note)
        return {self.slider: gr.update(value=(str(before), str(after)), visible=True),
                self.photo: gr.update(visible=False),
                self.caption: html("caption", f"Left before, right after: {width} × {height} px."),
                self.download: gr.update(value=str(image), visible=True),
                self.download_chain: gr.update(value=str(chain), visible=True),
                self.status: message_html(f"{done} {notes}".strip())}

    def _stopped(self) -> Update:
        return {self.status: message_html("Stopped."), **self._ready()}

    def _ready(self) -> Update:
        return {self.run: gr.update(interactive=True), self.stop: gr.update(visible=False)}

    def _without_result(self) -> Update:
        hidden = gr.update(value=None, visible=False)
        return {self.slider: hidden, self.download: hidden, self.download_chain: hidden,
                self.stop: gr.update(visible=False), self.chain_view: EMPTY_CHAIN}

    @staticmethod
    def _shown(value: str) -> Any:
        return gr.update(value=value, visible=True)
