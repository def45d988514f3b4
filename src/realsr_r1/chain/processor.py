"""ChainProcessor: text and images to ids and back, on top of the chain, the token layout and the
image tokenizer.

Knows how a dialogue is written: `<s>` question end-of-turn answer end-of-turn. Knows no policy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.settings import SETTINGS_FILE, ChainSettings
from realsr_r1.chain.spec import IMAGE, ChainSpec, Section
from realsr_r1.chain.text import ESCAPED_IMAGE, chain_pieces
from realsr_r1.chain.tokens import ChainForm, SectionForm, TokenLayout, code_name
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import read_json, write_json
from realsr_r1.core.images import (
    fit_image,
    resize_to_cover,
    size_of_shape,
    to_pil,
    to_pixels,
    to_rgb,
    with_colors_of,
)

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

    from realsr_r1.models.image_tokenizer import ImageTokenizer

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
BROKEN_IMAGE = "<|broken image|>"  # stands for image tokens that form no complete span
# in one batch of the image tokenizer: 1 GiB an activation at the published width
MAX_BATCH_PIXELS = 8 * 512 * 512


class ChainProcessor:
    """Turns (photo, question) into a prompt, chains into ids, and completions into text and images.

    `tokenizer`: the policy's text tokenizer, whose vocabulary names the image codes.
    `image_tokenizer`: pixels to codes. Raises `UserError` when the two and the settings don't fit
    together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokenizer: ImageTokenizer,
                 settings: ChainSettings):
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.settings = settings
        # Published tokenizers may have got the name of an image's place in text, with an id that
        # the policy doesn't have.
        vocabulary = {name: token for name, token in tokenizer.get_vocab().items() if name != IMAGE}
        _check_codes(vocabulary, image_tokenizer.codebook_size)
        layout = TokenLayout.from_vocabulary(vocabulary, image_tokenizer.codebook_size, settings.grid_unit_px,
                                             image_tokenizer.downsample)
        if settings.target_px < settings.grid_unit_px:
            raise UserError(f"target_px {settings.target_px} is smaller than grid_unit_px "
                            f"{settings.grid_unit_px}")
        if settings.fit == "stretch" and settings.target_px % settings.grid_unit_px:
            raise UserError(f"fit 'stretch' needs a target_px of whole grid units, and {settings.target_px} "
                            f"is no multiple of {settings.grid_unit_px}")
        self.layout = dataclasses.replace(layout, chain_form=self._chain_form(layout))

    @property
    def chain(self) -> ChainSpec:
        """What the policy is asked and writes."""
        return self.settings.chain

    def with_settings(self, settings: ChainSettings) -> ChainProcessor:
        """The same tokenizers with other settings."""
        return ChainProcessor(self.tokenizer, self.image_tokenizer, settings)

    # Text

    def encode_text(self, text: str) -> list[int]:
        """One piece of plain text -> ids, without special tokens (their names in it are plain
        text).
        """
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def _chain_form(self, layout: TokenLayout) -> ChainForm:
        sections = tuple(SectionForm(*(tuple(self.encode_text(tag)) if tag else ()
                                       for tag in (section.opening, section.closing)),
                                     section.share) for section in self.chain.sections)
        reserved = {*layout.code_ids, *layout.size_ids.values(), *self.tokenizer.all_special_ids, layout.bos,
                    layout.pad, layout.end_of_turn, layout.image_start, layout.image_end, layout.new_line}
        tags = {ids[0] for section in sections for ids in (section.open_ids, section.close_ids) if ids}
        body = tuple(token for name, token in sorted(self.tokenizer.get_vocab().items(),
                                                     key=lambda item: item[1])
                     if token not in reserved and token not in tags and "<" not in name and ">" not in name)
        return ChainForm(sections, body)

    # Images

    def fit(self, image: Image.Image) -> Image.Image:
        """The photo as the policy sees it: about target_px^2 pixels, whole grid units
        (`settings.fit` says how).
        """
        if self.settings.fit == "crop":
            return fit_image(image, self.settings.target_px, self.settings.grid_unit_px)
        from PIL import Image

        size = (self.settings.target_px,) * 2
        image = to_rgb(image)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def finish(self, image: Image.Image, lq: Image.Image, shape: tuple[int, int]) -> Image.Image:
        """A restored image as the owner of the photo expects it:

        `settings.color_fix` gives it the colours of `lq`, the photo as the policy saw it; one that
        was stretched gets the photo's `shape` (width, height) back.

        It keeps its number of pixels.
        """
        if self.settings.color_fix == "wavelet":
            image = with_colors_of(lq, image)
        if self.settings.fit == "crop":
            return image
        from PIL import Image

        size = size_of_shape(shape, image.width * image.height)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[list[int]]:
        """Images of whole grid units -> their spans of ids, in order; those of one size share
        batches.
        """
        spans: list[list[int]] = [[] for _ in images]
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.size, []).append(index)
        for (width, height), indices in by_size.items():
            for batch in _batches(indices, width * height, batch_size):
                codes = self.image_tokenizer.encode(to_pixels([images[index] for index in batch])).tolist()
                for index, grid in zip(batch, codes, strict=True):
                    spans[index] = self.layout.span(grid)
        return spans

    def chain_images(self, hq: Image.Image) -> dict[str, Image.Image]:
        """The images of a chain, down-sampled from `hq` (already fitted): section -> image."""
        unit = self.settings.grid_unit_px
        sizes = self.chain.image_sizes(hq.height // unit, hq.width // unit)
        return {section.name: resize_to_cover(hq, (columns * unit, rows * unit))
                for section, (rows, columns) in zip(self.chain.images, sizes, strict=True)}

    # Dialogue

    def encode_prompt(self, image: Image.Image, text: str | None = None) -> list[int]:
        """Photo (any size) and question -> ids from `<s>` to the end-of-turn of the question.

        The image stands where `text` has `<|image|>`, else at its end; `text` is the chain's
        question by default.
        """
        return self.prompt_from_span(self.encode_images([self.fit(image)])[0], text)

    def prompt_from_span(self, span: Sequence[int], text: str | None = None) -> list[int]:
        """`encode_prompt` for an image that is already a span of ids."""
        text = self.chain.question if text is None else text
        before, _, after = text.partition(IMAGE)
        if IMAGE in after:
            raise UserError(f"the question {text!r} has {text.count(IMAGE)} times {IMAGE}; a prompt has one "
                            "image")
        return [self.layout.bos, *self.encode_text(before), *span,
                *(self.encode_text(after) if after else []),
                self.layout.end_of_turn]

    def question_of(self, prompt: Sequence[int]) -> str:
        """The way back from `prompt_from_span`: the question that a prompt asks, this folder's
        where it asks that.

        Its image's place is left out where that is the end.
        """
        spans = self.image_spans(prompt)
        if len(spans) == 1 and self.prompt_from_span(spans[0]) == list(prompt):
            return self.chain.question
        text = self.decode_text(prompt).strip()
        return text.removesuffix(IMAGE).rstrip() if text.count(IMAGE) == 1 else text

    def encode_chain(self, sections: Mapping[str, str], spans: Mapping[str, Sequence[int]]) -> list[int]:
        """Bodies of the text sections and spans of the image sections -> the answer's ids,
        end-of-turn included.
        """
        return [token for _, ids in self.encode_chain_pieces(sections, spans)
                for token in ids] + [self.layout.end_of_turn]

    def encode_chain_pieces(self, sections: Mapping[str, str],
                            spans: Mapping[str, Sequence[int]]) -> list[tuple[Section | None, list[int]]]:
        """A chain's pieces in order, each tokenised on its own: (None, ids of a tag), or (section,
        ids of its body).
        """
        return [(section, list(spans[section.name]) if section is not None and section.is_image
                 else self.encode_text(text))
                for text, section in chain_pieces(sections, self.chain)]

    def encode_answer(self, text: str, images: Sequence[Image.Image | Sequence[int]]) -> list[int]:
        """The way back from `decode`: an answer's text and its images -> ids, end-of-turn included.

        `images`: one for every `<|image|>` in the text, as a picture of whole grid units or as the
        span of ids it was (`image_spans`): decoding a picture and encoding it again may give other
        codes, its span gives the same. Tags and the text between them are tokenised apart, so what
        `encode_chain` wrote comes back id by id. Raises `ValueError` for another number of images,
        and for a text with a broken image.
        """
        pieces = self.split_text(text)
        if BROKEN_IMAGE in text or pieces.count(IMAGE) != len(images):
            raise ValueError(f"{len(images)} images for a text with {pieces.count(IMAGE)} times {IMAGE} and "
                             f"{text.count(BROKEN_IMAGE)} broken ones")
        pictures = [image for image in images if not isinstance(image, Sequence)]
        encoded = iter(self.encode_images(pictures) if pictures else [])
        spans = iter([image if isinstance(image, Sequence) else next(encoded) for image in images])
        ids: list[int] = []
        for piece in pieces:
            ids += next(spans) if piece == IMAGE else self.encode_text(piece.replace(ESCAPED_IMAGE, IMAGE))
        return [*ids, self.layout.end_of_turn]

    def split_text(self, text: str) -> list[str]:
        """A text as the pieces that are tokenised apart: images' places, the chain's tags, and what
        is between.
        """
        return [piece for piece in self._apart.split(text) if piece]

    @cached_property
    def _apart(self) -> re.Pattern[str]:
        tags = [tag for section in self.chain.sections if section.tagged
                for tag in (section.opening, section.closing)]
        return re.compile("(" + "|".join(map(re.escape, (IMAGE, *tags))) + ")")

    # Decoding

    def image_spans(self, ids: Sequence[int]) -> list[list[int]]:
        """The complete images in a stream as their ids, in the order of `decode`'s images."""
        return [list(ids[span.start:span.stop]) for span in self.layout.find_spans(ids)]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Ids -> text, with `<|image|>` for every complete span and nothing else."""
        pieces, position = [], 0
        for span in self.layout.find_spans(ids):
            pieces += [self._plain_text(ids[position:span.start]), IMAGE]
            position = span.stop
        return "".join([*pieces, self._plain_text(ids[position:])])

    def _plain_text(self, ids: Sequence[int]) -> str:
        pieces: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            stray = token in self._image_only_ids
            if run and (token is None or stray):
                text = self.tokenizer.decode(run, skip_special_tokens=True,
                                             clean_up_tokenization_spaces=False)
                pieces.append(text.replace(IMAGE, ESCAPED_IMAGE))
                run = []
            if stray and not (pieces and pieces[-1] == BROKEN_IMAGE):
                pieces.append(BROKEN_IMAGE)
            elif not stray and token is not None:
                run.append(token)
        return "".join(pieces)

    @cached_property
    def _image_only_ids(self) -> frozenset[int]:
        layout = self.layout
        return frozenset((*layout.code_ids, *layout.size_ids.values(),
                          layout.image_start, layout.image_end, layout.new_line))

    def decode(self, ids: Sequence[int]) -> tuple[str, list[Image.Image]]:
        """Ids -> (text with `<|image|>`, the images in order)."""
        texts, images = self.decode_batch([ids])
        return texts[0], images[0]

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> tuple[list[str], list[list[Image.Image]]]:
        """Several streams at once: their texts and their images."""
        return [self.decode_text(ids) for ids in batch], self.decode_images(batch)

    def decode_images(self, batch: Sequence[Sequence[int]]) -> list[list[Image.Image]]:
        """The images of several streams; those of one size share batches, and none is decoded in
        tiles.
        """
        import torch

        found = [self.layout.find_spans(ids) for ids in batch]
        images: list[list[Any]] = [[None] * len(spans) for spans in found]
        by_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row, spans in enumerate(found):
            for index, span in enumerate(spans):
                by_shape.setdefault((len(span.codes), len(span.codes[0])), []).append((row, index))
        for (height, width), places in by_shape.items():
            for part in _batches(places, height * width * self.layout.downsample**2, len(places)):
                grids = torch.tensor([found[row][index].codes for row, index in part])
                for (row, index), image in zip(part, to_pil(self.image_tokenizer.decode(grids)), strict=True):
                    images[row][index] = image
        return images

    # Folders

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, image tokenizer and settings into `folder`, beside whatever policy is
        there.
        """
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER_FOLDER)
        write_json(folder / SETTINGS_FILE, self.settings.to_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu",
                        chain_settings: str | Path | None = None) -> ChainProcessor:
        """Read what `save_pretrained` wrote.

        Raises `UserError` that names the part that is missing.

        `chain_settings`: a file whose settings count instead of the folder's (`--chain_settings`).
        """
        from transformers import AutoTokenizer

        from realsr_r1.models.loading import load_image_tokenizer

        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"no such model folder: {folder}")
        for part in (SETTINGS_FILE, "tokenizer.json", f"{IMAGE_TOKENIZER_FOLDER}/config.json"):
            if not (folder / part).is_file():
                raise UserError(f"{folder} has no {part}; it is no complete model folder (realsr-r1 export "
                                "makes one)")
        settings = ChainSettings.from_dict(read_json(folder / SETTINGS_FILE), str(folder / SETTINGS_FILE))
        if chain_settings is not None:
            settings = ChainSettings.read(chain_settings, "--chain_settings", settings)
        image_tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER).to(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        # a damaged tokenizer.json, tokenizer_config.json or config.json: any kind of error
        except Exception as error:
            raise UserError(f"the text tokenizer in {folder} can't be read ({error}); copy the folder again") from error
        return cls(tokenizer, image_tokenizer, settings)


def _batches(items: list[Any], pixels: int, largest: int) -> Iterator[list[Any]]:
    """Split images of `pixels` pixels each into batches of at most `largest`, and at most
    `MAX_BATCH_PIXELS`.
    """
    size = max(1, min(largest, MAX_BATCH_PIXELS // pixels))
    for start in range(0, len(items), size):
        yield items[start:start + size]


def _check_codes(vocabulary: Mapping[str, int], codebook_size: int) -> None:
    """Raise `UserError` where the vocabulary names the first codes of the image tokenizer, and then
    no more.
    """
    named = 0
    while code_name(named) in vocabulary:
        named += 1
    if 0 < named < codebook_size and not any(code_name(code) in vocabulary
                                             for code in range(named, codebook_size)):
        raise UserError(f"the image tokenizer has {codebook_size:,} codes and the text tokenizer names "
                        f"{named:,}; they don't belong together")
