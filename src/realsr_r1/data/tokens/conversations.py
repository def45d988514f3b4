"""Lumina-mGPT's conversation JSON, as its TRAIN.md describes it.

A file is a list of {"conversations": [{"from", "value"}, ...], "image": [paths]}. Questions
("human") and answers ("gpt" or "assistant") alternate; `<|image|>` stands for the images in their
order. Every answer is trained on. Losses are counted by section where an answer is written as a
chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from realsr_r1.chain.spec import IMAGE
from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import MinLen
from realsr_r1.core.texts import escaped, is_text, same_named
from realsr_r1.data.tokens.samples import Piece, Sample

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

    from realsr_r1.chain.processor import ChainProcessor

Records = Annotated[list[Any], MinLen(1)]  # each is checked on its own
ASKING, ANSWERING = ("human",), ("gpt", "assistant")


def read_conversations(path: str | Path) -> Dataset:
    """Read the conversations of a JSON file into a dataset.

    Its columns are `values` (the texts, turn by turn), `images` (paths) and `fault`: why a record
    can't be used, or an empty text. A record with a fault has no texts and images. Paths in the
    file are absolute, or relative to its folder, and a relative one must not leave the folder.
    Raises `UserError` that names a file which holds no list.
    """
    from datasets import Dataset, Features, List, Value

    path, records = Path(path), read_json(path, Records, "it is a list of conversations")
    columns: dict[str, list[Any]] = {"values": [], "images": [], "fault": []}
    for record in records:
        try:
            row: tuple[Any, ...] = (*_checked(record, path.parent), "")
        except UserError as error:
            row = ([], [], escaped(str(error)))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    texts = List(Value("string"))
    return Dataset.from_dict(columns,
                             features=Features({"values": texts, "images": texts, "fault": Value("string")}))


def _checked(record: Any, folder: Path) -> tuple[list[str], list[str]]:
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise UserError("'conversations' must be a list of questions and answers in turn (Lumina-mGPT's "
                        "format)")
    for number, turn in enumerate(turns):
        who = ASKING if number % 2 == 0 else ANSWERING
        if not isinstance(turn, dict) or turn.get("from") not in who or not is_text(turn.get("value")):
            raise UserError(f"turn {number} must have 'from' {' or '.join(map(repr, who))} and a text as "
                            "'value'")
    images = record.get("image", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(map(is_text, images)):
        raise UserError("'image' must be a list of paths")
    texts = [turn["value"] for turn in turns]
    places = sum(text.count(IMAGE) for text in texts)
    if not places:  # images without a place stand before the first question, as in Lumina-mGPT
        texts[0] = f"{IMAGE} " * len(images) + texts[0]
    elif places != len(images):
        raise UserError(f"{len(images)} images for {places} times {IMAGE}")
    return texts, [_image_path(image, folder) for image in images]


def _image_path(image: str, folder: Path) -> str:
    try:
        path = same_named(folder / image)
        if not path.is_file():
            raise UserError(f"no such image: {path}")
        inside = Path(image).is_absolute() or path.resolve().is_relative_to(folder.resolve())
    # The name is too long or has a null byte, or the links make a loop.
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{image[:200]!r} is no path "
                        f"({error.strerror if isinstance(error, OSError) else error})") from error
    if not inside:
        raise UserError(f"{image} lies outside of {folder}; write its whole path if that is meant")
    return str(path)


def encode_conversations(records: Mapping[str, Sequence[Any]], processor: ChainProcessor) -> list[Sample]:
    """Turn a batch of columns into samples.

    Raises `UserError` for a record with a fault, and for an image that can't be read.
    """
    from realsr_r1.data.photos.decoding import decode
    from realsr_r1.data.photos.sources import FilePlace, Photo

    for fault in filter(None, records["fault"]):
        raise UserError(fault)
    images = [_fitted(decode(Photo(path, FilePlace(path))), processor) for paths in records["images"]
              for path in paths]
    spans = iter(processor.encode_images(images))
    samples = []
    for texts in records["values"]:
        sample, parts = Sample.of([processor.layout.bos], [], ()), processor.chain.parts
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            asked = [token for text in processor.split_text(question)
                     for token in (next(spans) if text == IMAGE else processor.encode_text(text))]
            sample += Sample.of([*asked, processor.layout.end_of_turn], _answer(answer, spans, processor),
                                parts)
        samples.append(sample)
    return samples


def _answer(answer: str, spans: Any, processor: ChainProcessor) -> list[Piece]:
    pieces: list[Piece] = []
    opens = {section.opening: section.name for section in processor.chain.sections if section.tagged}
    closes = {section.closing for section in processor.chain.sections if section.tagged}
    inside: str | None = None  # the section that is open
    for text in processor.split_text(answer):
        ids = next(spans) if text == IMAGE else processor.encode_text(text)
        if text in opens or text in closes:
            inside = opens.get(text)
            pieces.append(("tags", ids))
        else:
            pieces.append((inside or ("image" if text == IMAGE else "text"), ids))
    return [*pieces, ("tags", [processor.layout.end_of_turn])]


def _fitted(image: Image, processor: ChainProcessor) -> Image:
    """Fit an image, unless it has whole grid units and is no larger than the target.

    A chain's smaller images are such, and stay as they are.
    """
    from realsr_r1.core.images import to_rgb

    settings = processor.settings
    is_whole = not image.width % settings.grid_unit_px and not image.height % settings.grid_unit_px
    if is_whole and image.width * image.height <= settings.target_px**2:
        return to_rgb(image)
    return processor.fit(image)
