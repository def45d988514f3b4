"""ChainProcessor: turns text and images into ids and back.

It combines the chain, the token layout, the text tokenizer and the image tokenizer. It knows how a
dialogue is written: `<s>` question end-of-turn answer end-of-turn. It knows no policy.
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
from realsr_r1.core.files import write_json
from realsr_r1.core.images import (
    OFFSETS,
    fit_image,
    resize_to_cover,
    to_pil,
    to_pixels,
    to_rgb,
)

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

    from realsr_r1.models.image_tokenizer import ImageTokenizer

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
BROKEN_IMAGE = "<|broken image|>"  # stands for image tokens that form no complete span
# Pixels in one batch of the image tokenizer: at the published width an activation then takes 1 GiB.
MAX_BATCH_PIXELS = 8 * 512 * 512


class ChainProcessor:
    """Turns (photo, question) into a prompt, chains into ids, and completions into text and images.

    `tokenizer`: the policy's text tokenizer, whose vocabulary names the image codes.
    `image_tokenizer`: turns pixels into codes. Raises `UserError` when the two and the settings
    don't fit together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokenizer: ImageTokenizer,
                 settings: ChainSettings):
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.settings = settings
        # A published tokenizer may contain the name `<|image|>` with an id that the policy lacks.
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
        """The policy's chain: the question that it is asked, and the sections that it writes."""
        return self.settings.chain

    def with_settings(self, settings: ChainSettings) -> ChainProcessor:
        """The same tokenizers with other settings."""
        return ChainProcessor(self.tokenizer, self.image_tokenizer, settings)

    # Text

    def encode_text(self, text: str) -> list[int]:
        """Encode plain text into ids; names of special tokens count as plain text."""
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
        """Return the photo as the policy sees it: about target_px^2 pixels, in whole grid units.

        `settings.fit` says how the photo gets this size.
        """
        if self.settings.fit != "stretch":
            return fit_image(image, self.settings.target_px, self.settings.grid_unit_px,
                             OFFSETS[self.settings.fit])
        from PIL import Image

        size = (self.settings.target_px,) * 2
        image = to_rgb(image)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[list[int]]:
        """Encode images of whole grid units into their spans of ids, in order.

        Images of the same size share batches.
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
        """Down-sample `hq` (already fitted) into the images of a chain: section -> image."""
        unit = self.settings.grid_unit_px
        sizes = self.chain.image_sizes(hq.height // unit, hq.width // unit)
        return {section.name: resize_to_cover(hq, (columns * unit, rows * unit))
                for section, (rows, columns) in zip(self.chain.images, sizes, strict=True)}

    # Dialogue

    def encode_prompt(self, image: Image.Image, text: str | None = None) -> list[int]:
        """Encode a photo of any size and a question into ids, from `<s>` to the end-of-turn.

        `text` is the question, by default the chain's own. The image stands where the text has
        `<|image|>`, or else at its end.
        """
        return self.prompt_from_span(self.encode_images([self.fit(image)])[0], text)

    def prompt_from_span(self, span: Sequence[int], text: str | None = None) -> list[int]:
        """Do the same as `encode_prompt` for an image that is already a span of ids."""
        text = self.chain.question if text is None else text
        before, _, after = text.partition(IMAGE)
        if IMAGE in after:
            raise UserError(f"the question {text!r} has {text.count(IMAGE)} times {IMAGE}; a prompt has one "
                            "image")
        return [self.layout.bos, *self.encode_text(before), *span,
                *(self.encode_text(after) if after else []),
                self.layout.end_of_turn]

    def question_of(self, prompt: Sequence[int]) -> str:
        """Return the question that a prompt asks: the inverse of `prompt_from_span`.

        Where the prompt asks this folder's own question, that question is returned as it is written
        there. `<|image|>` is left out where the image stands at the end.
        """
        spans = self.image_spans(prompt)
        if len(spans) == 1 and self.prompt_from_span(spans[0]) == list(prompt):
            return self.chain.question
        text = self.decode_text(prompt)
        for question in (text.removesuffix(IMAGE), text):
            if len(spans) == 1 and question.count(IMAGE) <= 1 \
                    and self.prompt_from_span(spans[0], question) == list(prompt):
                return question
        return text

    def encode_chain(self, sections: Mapping[str, str], spans: Mapping[str, Sequence[int]]) -> list[int]:
        """Encode a chain into the answer's ids, end-of-turn included.

        `sections`: the bodies of the text sections. `spans`: the ids of the image sections.
        """
        return [token for _, ids in self.encode_chain_pieces(sections, spans)
                for token in ids] + [self.layout.end_of_turn]

    def encode_chain_pieces(self, sections: Mapping[str, str],
                            spans: Mapping[str, Sequence[int]]) -> list[tuple[Section | None, list[int]]]:
        """Encode a chain's pieces in order, each tokenised on its own.

        A piece is (None, ids of a tag) or (section, ids of its body).
        """
        return [(section, list(spans[section.name]) if section is not None and section.is_image
                 else self.encode_text(text))
                for text, section in chain_pieces(sections, self.chain)]

    def encode_answer(self, text: str, images: Sequence[Image.Image | Sequence[int]]) -> list[int]:
        """Encode an answer's text and images into ids, end-of-turn included.

        This is the inverse of `decode`. `images`: one for every `<|image|>` in the text. It is
        either a picture of whole grid units or its span of ids (`image_spans`). A picture that was
        decoded may be encoded into other codes than before; a span keeps its codes. Tags and the
        text between them are tokenised separately, so the result of `encode_chain` comes back id by
        id. Raises `ValueError` for another number of images, and for a text with a broken image.
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
        """Split a text into the pieces that are tokenised separately.

        These are the places of images, the chain's tags, and the texts between them.
        """
        return [piece for piece in self._apart.split(text) if piece]

    @cached_property
    def _apart(self) -> re.Pattern[str]:
        tags = [tag for section in self.chain.sections if section.tagged
                for tag in (section.opening, section.closing)]
        return re.compile("(" + "|".join(map(re.escape, (IMAGE, *tags))) + ")")

    # Decoding

    def image_spans(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the ids of every complete image in a stream, in the order of `decode`'s images."""
        return [list(ids[span.start:span.stop]) for span in self.layout.find_spans(ids)]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Decode ids into text, with `<|image|>` for every complete span and nothing else."""
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
            elif not stray and token is not None and 0 <= token < self.layout.vocab_size:
                run.append(token)  # ids that are no token's have no text, as in tokenizers
        return "".join(pieces)

    @cached_property
    def _image_only_ids(self) -> frozenset[int]:
        layout = self.layout
        return frozenset((*layout.code_ids, *layout.size_ids.values(),
                          layout.image_start, layout.image_end, layout.new_line))

    def decode(self, ids: Sequence[int]) -> tuple[str, list[Image.Image]]:
        """Decode ids into (text with `<|image|>`, the images in order)."""
        texts, images = self.decode_batch([ids])
        return texts[0], images[0]

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> tuple[list[str], list[list[Image.Image]]]:
        """Decode several streams at once into their texts and their images."""
        return [self.decode_text(ids) for ids in batch], self.decode_images(batch)

    def decode_images(self, batch: Sequence[Sequence[int]]) -> list[list[Image.Image]]:
        """Decode the images of several streams.

        Images of the same size share batches, and none is decoded in tiles.
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
                decoded = to_pil(self.image_tokenizer.decode(grids), self.settings.pixels == "rounded")
                for (row, index), image in zip(part, decoded, strict=True):
                    images[row][index] = image
        return images

    # Folders

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, image tokenizer and settings into `folder`, which may hold a policy."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER_FOLDER)
        write_json(folder / SETTINGS_FILE, self.settings.to_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu",
                        chain_settings: str | Path | None = None) -> ChainProcessor:
        """Read what `save_pretrained` wrote.

        `chain_settings`: a file whose settings count instead of the folder's (`--chain_settings`).
        Raises `UserError` that names the part that is missing.
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
        settings = ChainSettings.read(folder / SETTINGS_FILE)
        if chain_settings is not None:
            settings = ChainSettings.read(chain_settings, "--chain_settings", settings)
        image_tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER).to(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            tokenizer("a photo")
        # A damaged tokenizer.json, tokenizer_config.json or config.json can raise any error, some at
        # the first text.
        except Exception as error:
            raise UserError(f"the text tokenizer in {folder} can't be read ({error}); "
                            "copy the folder again") from error
        return cls(tokenizer, image_tokenizer, settings)


def _batches(items: list[Any], pixels: int, largest: int) -> Iterator[list[Any]]:
    """Split images of `pixels` pixels each into batches of at most `largest` images.

    A batch has at most `MAX_BATCH_PIXELS` pixels, but at least one image.
    """
    size = max(1, min(largest, MAX_BATCH_PIXELS // pixels))
    for start in range(0, len(items), size):
        yield items[start:start + size]


def _check_codes(vocabulary: Mapping[str, int], codebook_size: int) -> None:
    """Raise `UserError` where the vocabulary names only some of the image tokenizer's codes."""
    named = 0
    while code_name(named) in vocabulary:
        named += 1
    if 0 < named < codebook_size and not any(code_name(code) in vocabulary
                                             for code in range(named, codebook_size)):
        raise UserError(f"the image tokenizer has {codebook_size:,} codes and the text tokenizer names "
                        f"{named:,}; they don't belong together")
