"""Restorer: photos in, restored photos of the size asked for out, whole or section by section.

It plans a photo (`sizes`), has it written (`writing`), in tiles where it is large (`tiles`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.settings import SETTINGS_FILE
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.errors import UserError
from realsr_r1.core.images import scale_to
from realsr_r1.restoring.batches import Batches, rows_that_fit, workers_for
from realsr_r1.restoring.branching import check_branch
from realsr_r1.restoring.colors import fix_colors, wavelet_levels, with_share_of
from realsr_r1.restoring.options import RestoreOptions
from realsr_r1.restoring.picking import Judge, make_judge
from realsr_r1.restoring.restoration import Photo, Piece, Progress, Restoration
from realsr_r1.restoring.sizes import Plan, plan_photo, tile_and_overlap
from realsr_r1.restoring.tiles import write_tiles
from realsr_r1.restoring.writing import Answer, Row, Writer

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.rollout import RolloutEngine


class Restorer:
    """Restores photos with a model folder's policy.

    `source`: the folder, for the record. `batch_size`: rows at a time, by default as many as fit.
    """

    def __init__(self, processor: ChainProcessor, engine: RolloutEngine, source: str = "",
                 batch_size: int | None = None):
        self.processor, self.engine, self.source = processor, engine, source
        fitting = rows_that_fit(engine.policy, processor, engine.config)
        self.batches = Batches(fitting if batch_size is None else batch_size,
                               workers_for(engine.policy, fitting))
        self.writer = Writer(processor, engine, self.batches)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None,
                        dtype: torch.dtype | str | None = None, *, bits: int | None = None,
                        batch_size: int | None = None, **sampling: Any) -> Restorer:
        """Load a model folder.

        `device`: cuda, cpu ... (by default cuda where there is one). `dtype`: of the policy (by
        default bfloat16 on CUDA, else float32). `bits`: 8 or 4 holds its layers in so many bits
        (bitsandbytes). `batch_size`: see `Restorer`. `sampling`: fields of `RolloutConfig`, which
        win over the folder's. Raises `UserError` for a folder or a setting that can't be used.
        """
        from realsr_r1.chain.processor import ChainProcessor
        from realsr_r1.core.devices import pick_device, policy_dtype
        from realsr_r1.models import load_policy
        from realsr_r1.models.quantising import load_quantised
        from realsr_r1.rollout import RolloutConfig, RolloutEngine

        device = pick_device(device)
        dtype = dtype or policy_dtype(device)
        processor = ChainProcessor.from_pretrained(folder, device=device)
        if bits:
            policy = load_quantised(folder, dtype, bits, device)
        else:
            policy = load_policy(folder, dtype=dtype).to(device)
        config = RolloutConfig.from_settings(
            processor.settings.sampling, f"{folder}: {SETTINGS_FILE}", num_generations=1,
            **{"grammar": "chain", **sampling})
        return cls(processor, RolloutEngine(policy, processor, config), str(folder), batch_size)

    def restore(self, image: Image, scale: float = 1.0, *, place: int = 0, name: str = "the photo",
                progress: Progress | None = None, **options: Any) -> Restoration:
        """Restore one photo of any size and mode.

        `options`: the other fields of `RestoreOptions`. `place`, `name`: see `Photo`. Raises
        `UserError` for options that can't be used, and where the policy wrote no image.
        """
        asked = RestoreOptions(scale=scale, **options)
        [(_, result)] = self.restore_all([Photo(image, place, name)], asked, progress)
        if isinstance(result, UserError):
            raise result
        return result

    def restore_all(self, photos: Iterable[Photo], options: RestoreOptions,
                    progress: Progress | None = None) -> Iterator[tuple[Photo, Restoration | UserError]]:
        """Restore photos, and yield each with its result, or with the reason why there is none.

        Photos that are written as one image share batches. A photo in tiles has batches of its own,
        and comes before those that are waiting for a batch to be full.
        """
        judge = self._judge(options)
        self._tile_and_overlap(options)  # refuses what no photo can be restored with
        waiting: list[tuple[Photo, Plan]] = []
        for photo in photos:
            try:
                plan = self._plan(photo.image, options)
            except UserError as error:
                yield photo, error
                continue
            if progress:
                progress(1 + self._tiles_of(plan), 0)
            if plan.tiling is not None:
                yield from self._restore_batch([(photo, plan)], options, judge, progress)
                continue
            waiting.append((photo, plan))
            if len(waiting) * options.candidates[0] >= self.batches.size:
                yield from self._restore_batch(waiting, options, judge, progress)
                waiting = []
        yield from self._restore_batch(waiting, options, judge, progress)

    def stream(self, image: Image, scale: float = 1.0, *, place: int = 0, name: str = "the photo",
               progress: Progress | None = None, **options: Any) -> Iterator[Piece | Restoration]:
        """Restore one photo, and yield the sections of its chain as they are written.

        The last item is the `Restoration`, the one that `restore` returns. The images of a photo in
        tiles come first as previews of the whole photo and then, when all tiles are written, put
        together. With several samples the sections come when the best one is known. The arguments
        are those of `restore`.
        """
        asked = RestoreOptions(scale=scale, **options)
        photo, judge, plan = Photo(image, place, name), self._judge(asked), self._plan(image, asked)
        if progress:
            progress(1 + self._tiles_of(plan), 0)
        is_preview = plan.tiling is not None and plan.whole is None
        row, candidates = Row(plan.fitted.copy, place), self._candidates_of_whole(plan, asked)
        if candidates[0] == 1:
            seen = 0
            prompt = self.writer.prompt(plan.fitted)
            for ids in self.batches.step_by_step(self.engine.stream(prompt, first_row=place)):
                bodies = self.processor.layout.chain_bodies(ids)
                yield from self._pieces(bodies, seen, is_preview)
                seen = len(bodies)
            answer = self._judged(self.writer.answer(ids), plan.fitted, judge)
        else:
            [answer] = self.writer.write([row], candidates, judge)
            yield from self._pieces(self.processor.layout.chain_bodies(answer.ids), 0, is_preview)
        if progress:
            progress(0, 1)
        result = self._finish(photo, plan, answer, asked, judge, progress)
        if is_preview:
            yield from (Piece(section.name, section.label, "image", image=result.images[section.name])
                        for section in self.processor.chain.images if section.name in result.images)
        yield result

    # Parts

    def _judge(self, options: RestoreOptions) -> Judge | None:
        if options.branch is not None:
            check_branch(options.branch, self.processor.chain, self.engine.config.grammar)
        device = str(self.engine.policy.get_input_embeddings().weight.device)
        return make_judge(options.judge, device) if options.judge else None

    @staticmethod
    def _judged(answer: Answer, view: Image, judge: Judge | None) -> Answer:
        if judge is None or not answer.images:
            return answer
        return dataclasses.replace(answer, scores=tuple(judge(answer.images[-1:], view)))

    def _plan(self, image: Image, options: RestoreOptions) -> Plan:
        processor = self.processor
        tile, overlap = self._tile_and_overlap(options)
        return plan_photo(image, processor.fit, processor.settings, options.scale, tile, overlap,
                          can_tile=self.engine.config.grammar == "chain")

    def _tile_and_overlap(self, options: RestoreOptions) -> tuple[int, int]:
        return tile_and_overlap(options.tile, options.overlap, self.processor.settings,
                                max(self.processor.layout.size_ids))

    @staticmethod
    def _tiles_of(plan: Plan) -> int:
        """Return how many rows a photo's tiles take besides the row of the whole photo."""
        return 0 if plan.tiling is None else len(plan.tiling) - (plan.whole is not None)

    @staticmethod
    def _candidates_of_whole(plan: Plan, options: RestoreOptions) -> tuple[int, ...]:
        """Return how often the whole photo is written: once where only its words are used."""
        return (1,) if plan.tiling is not None and plan.whole is None else options.candidates

    def _restore_batch(self, batch: Sequence[tuple[Photo, Plan]], options: RestoreOptions,
                       judge: Judge | None, progress: Progress | None
                       ) -> Iterator[tuple[Photo, Restoration | UserError]]:
        if not batch:
            return
        # Only a single photo can be one in tiles.
        candidates = self._candidates_of_whole(batch[0][1], options)
        rows = [Row(plan.fitted.copy, photo.place) for photo, plan in batch]
        for (photo, plan), answer in zip(batch, self.writer.write(rows, candidates, judge),
                                         strict=True):
            if progress:
                progress(0, 1)
            try:
                yield photo, self._finish(photo, plan, answer, options, judge, progress)
            except UserError as error:
                yield photo, error

    def _pieces(self, bodies: Sequence[Sequence[int]], start: int, is_preview: bool) -> Iterator[Piece]:
        """Yield the sections from number `start` on; `bodies`: the ids of all so far."""
        for section, ids in zip(self.processor.chain.sections[start:], bodies[start:], strict=False):
            if section.is_image:
                [[image]] = self.processor.decode_images([ids])
                yield Piece(section.name, section.label, "image", image=image, is_preview=is_preview)
            else:
                yield Piece(section.name, section.label, "text", self.processor.decode_text(ids).strip())

    def _finish(self, photo: Photo, plan: Plan, whole: Answer, options: RestoreOptions, judge: Judge | None,
                progress: Progress | None) -> Restoration:
        """Write the tiles that the photo needs besides `whole`, and make the result of them."""
        if not whole.images:
            raise UserError(f"the policy wrote no image for {photo.name} in {len(whole.ids)} tokens; try "
                            "another --seed, a larger --max_new_tokens or, if it was taught chains, "
                            "--grammar chain")
        images = {section.name: image for section, image in
                  zip(self.processor.chain.images, whole.images, strict=False)}
        written, tiles, judged, lq = whole.images[-1], [], [whole.scores], plan.fitted
        if plan.tiling is not None:
            written, blended, tiles, judged = write_tiles(self.writer, plan, whole, photo.place, options,
                                                          judge, progress)
            if plan.whole is None:
                images, lq = blended, plan.picture
        color_fix, fidelity = self._finishing(options)
        final = fix_colors(scale_to(written, plan.picture.size), plan.picture, color_fix,
                           wavelet_levels(self.processor.settings.target_px))
        final = with_share_of(plan.picture, final, fidelity)
        return Restoration(final, lq, images, whole.text, parse_chain(whole.text, self.processor.chain),
                           tiles, _mean_scores(options, judged), self._settings(options),
                           self._note(photo, plan))

    def _settings(self, options: RestoreOptions) -> dict[str, Any]:
        tile, overlap = self._tile_and_overlap(options)
        color_fix, fidelity = self._finishing(options)
        return {"model": self.source, **asdict(options), "tile": tile, "overlap": overlap,
                "color_fix": color_fix, "fidelity": fidelity, "pick": options.judge,
                "sampling": asdict(self.engine.config)}

    def _finishing(self, options: RestoreOptions) -> tuple[str, float]:
        """Return how colours are fixed and the photo's share: as asked, else the model folder's.

        Who asks for no fix of the colours wants what the model wrote, without a share of the photo.
        """
        settings, fidelity = self.processor.settings, options.fidelity
        if fidelity is None:
            fidelity = 0.0 if options.color_fix == "none" else settings.fidelity
        return options.color_fix or settings.color_fix, fidelity

    def _note(self, photo: Photo, plan: Plan) -> str:
        largest = self.processor.settings.target_px
        size = plan.picture.size
        if self.engine.config.grammar == "chain" or size[0] * size[1] <= largest**2:
            return ""
        return (f"{photo.name} was restored at {plan.fitted.width} x {plan.fitted.height} px and enlarged: "
                f"only the grammar chain writes tiles")


def _mean_scores(options: RestoreOptions, scores: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Return the mean of the best and, of whole samples, of the first scores of all that was judged."""
    judge, judged = options.judge, [each for each in scores if each]
    if judge is None or not judged:
        return {}
    best = {judge: fmean(map(max, judged))}
    if options.branch is not None:  # the first candidate may have been left out
        return best
    return best | {f"{judge} of the first samples": fmean(each[0] for each in judged)}
