"""Text and images to ids and back: the dialogue's layout, chains piece by piece, and no image where
none is written.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from realsr_r1.chain.processor import BROKEN_IMAGE, ChainProcessor
from realsr_r1.chain.settings import SETTINGS_FILE, ChainSettings
from realsr_r1.chain.spec import ChainSpec, close_tag, open_tag
from realsr_r1.chain.text import (
    ESCAPED_IMAGE,
    IMAGE,
    SECTIONS,
    chain_pieces,
    parse_chain,
)
from realsr_r1.chain.tokens import IMAGE_START, code_name
from realsr_r1.core.errors import UserError

from ..small import photo

IMAGE_SECTIONS = tuple(section.name for section in ChainSpec.published().images)
TEXTS = {"degradation": "light blur, keep, light noise, light compression, upsample",
         "rough_understand": "A cat.",
         "middle_understand": "A ginger cat.", "final_understand": "A ginger cat, each whisker sharp."}


@pytest.fixture(scope="module")
def processor(tiny_model):
    """The embedded model's, with Lumina-mGPT's way to fit photos."""
    processor = ChainProcessor.from_pretrained(tiny_model)
    processor.settings = dataclasses.replace(processor.settings, fit="crop", color_fix="none")
    return processor


@pytest.fixture(scope="module")
def spans(processor):
    """Section -> the span of its image, of one photo."""
    images = processor.chain_images(processor.fit(photo("chelsea", 100)))
    return dict(zip(images, processor.encode_images(list(images.values())), strict=True))


@pytest.fixture(scope="module")
def chain_ids(processor, spans):
    return processor.encode_chain(TEXTS, spans)


def test_a_prompt_is_begin_question_image_and_end_of_turn(processor):
    layout = processor.layout
    ids = processor.encode_prompt(photo("coffee", 90), "What is this?")
    question = processor.encode_text("What is this?")
    (span,) = layout.find_spans(ids)
    assert ids[:1 + len(question)] == [layout.bos, *question]
    assert (span.start, span.stop) == (1 + len(question), len(ids) - 1)
    assert ids[-1] == layout.end_of_turn
    assert layout.bos not in ids[1:] and layout.end_of_turn not in ids[:-1]


def test_the_image_stands_where_the_question_has_it(processor):
    ids = processor.encode_prompt(photo("coffee", 48), f"Look: {IMAGE} What is this?")
    (span,) = processor.layout.find_spans(ids)
    assert ids[1:span.start] == processor.encode_text("Look: ")
    assert ids[span.stop:-1] == processor.encode_text(" What is this?")


def test_without_a_question_that_of_the_settings_is_asked(processor):
    image = photo("coffee", 48)
    assert processor.encode_prompt(image) == processor.encode_prompt(image, processor.chain.question)


@pytest.mark.parametrize("size", [(48, 48), (300, 100), (100, 420)])
def test_a_photo_of_any_size_becomes_whole_grid_units(processor, size):
    image = processor.fit(photo("astronaut", 300).resize(size))
    unit = processor.settings.grid_unit_px
    assert image.width % unit == image.height % unit == 0
    assert image.width * image.height <= processor.settings.target_px ** 2
    assert (image.width >= image.height) == (size[0] >= size[1])


def test_a_chain_is_tokenised_piece_by_piece(processor, spans, chain_ids):
    pieces = [list(spans[section.name]) if section and section.is_image else processor.encode_text(text)
              for text, section in chain_pieces(TEXTS)]
    assert chain_ids == [*sum(pieces, []), processor.layout.end_of_turn]


def test_a_chain_is_read_back_with_text_images_and_spans(processor, spans, chain_ids):
    text, images = processor.decode(chain_ids)
    chain = parse_chain(text)
    assert chain.is_well_formed
    assert {name: chain.sections[name] for name in TEXTS} == TEXTS
    unit = processor.settings.grid_unit_px
    assert [image.size for image in images] == [(unit, unit), (2 * unit, 2 * unit), (3 * unit, 3 * unit)]
    found = [processor.layout.span(span.codes) for span in processor.layout.find_spans(chain_ids)]
    assert found == [list(spans[name]) for name in IMAGE_SECTIONS]


def test_the_chain_grammar_spells_tags_as_encoding_does(processor):
    form = processor.layout.chain_form
    for name, section in zip(SECTIONS, form.sections, strict=True):
        assert list(section.open_ids) == processor.encode_text(open_tag(name))
        assert list(section.close_ids) == processor.encode_text(close_tag(name))
        assert section.is_image == (name in IMAGE_SECTIONS)


def test_a_body_of_the_chain_grammar_can_hold_every_text_but_no_tag_nor_image(processor):
    form, layout = processor.layout.chain_form, processor.layout
    for text in TEXTS.values():
        assert set(processor.encode_text(text)) <= set(form.body_ids)
    forbidden = {layout.bos, layout.pad, layout.end_of_turn, layout.image_start, layout.image_end,
                 layout.new_line,
                 *layout.code_ids, *layout.size_ids.values(),
                 *(section.close_ids[0] for section in form.sections)}
    assert forbidden.isdisjoint(form.body_ids)


def test_decoded_images_look_like_the_photo(processor):
    import numpy

    image = processor.fit(photo("coffee", 48))
    (decoded,) = processor.decode(processor.encode_images([image])[0])[1]
    error = numpy.asarray(decoded, float) - numpy.asarray(image, float)
    spread = numpy.asarray(image, float) - numpy.asarray(image, float).mean(axis=(0, 1))
    assert (error ** 2).mean() < 0.25 * (spread ** 2).mean()


def test_images_are_encoded_and_decoded_alike_alone_and_in_company(processor):
    images = [processor.fit(photo(name, 48)) for name in ("coffee", "chelsea")] + [photo("astronaut", 16)]
    together = processor.encode_images(images)
    assert together == [processor.encode_images([image])[0] for image in images]
    texts, decoded = processor.decode_batch([together[0] + together[2], together[1], []])
    assert texts == [IMAGE * 2, IMAGE, ""]
    assert [len(found) for found in decoded] == [2, 1, 0]
    assert decoded[0][1].tobytes() == processor.decode(together[2])[1][0].tobytes()


def test_an_image_written_as_text_is_escaped(processor, spans):
    ids = [*processor.encode_text(f"see {IMAGE} "), *spans["rough_image"]]
    text, images = processor.decode(ids)
    assert text == f"see {ESCAPED_IMAGE} {IMAGE}"
    assert len(images) == 1


def test_an_image_written_as_text_stays_escaped_around_dropped_tokens(processor):
    before, after = processor.encode_text("<|im"), processor.encode_text("age|>")
    assert processor.decode_text([*before, processor.layout.pad, *after]) == ESCAPED_IMAGE


@pytest.mark.parametrize("token", [-1, -2**40, 2**31, 2**32 + 5, 10**30])
def test_an_id_that_no_vocabulary_has_is_decoded_to_nothing(processor, token):
    before, after = processor.encode_text("a photo"), processor.encode_text("of a cat")
    assert token >= processor.layout.vocab_size or token < 0
    assert processor.decode([*before, token, *after]) == processor.decode([*before, *after])


@pytest.mark.parametrize("damage", ["cut", "no start", "wrong size", "no new line", "foreign token"])
def test_a_broken_image_is_no_image_and_breaks_the_chain(processor, spans, damage):
    layout, span = processor.layout, list(spans["final_image"])
    broken = {"cut": span[:-1], "no start": span[1:], "wrong size": [span[0], layout.size_ids[1], *span[2:]],
              "no new line": [token for token in span if token != layout.new_line],
              "foreign token": [*span[:9], *processor.encode_text("x"), *span[9:]]}[damage]
    ids = processor.encode_chain(TEXTS, {**spans, "final_image": broken})
    text, images = processor.decode(ids)
    assert BROKEN_IMAGE in text and text.count(IMAGE) == len(images) == 2
    assert not parse_chain(text).is_well_formed
    assert code_name(0)[:6] not in text


def test_a_saved_processor_is_the_same_one(processor, chain_ids, tmp_path):
    processor.settings = dataclasses.replace(processor.settings, sampling={"temperature": 0.5})
    processor.save_pretrained(tmp_path)
    loaded = ChainProcessor.from_pretrained(tmp_path)
    assert loaded.settings == processor.settings
    assert loaded.layout == processor.layout
    image = photo("astronaut", 200)
    assert loaded.encode_prompt(image) == processor.encode_prompt(image)
    assert loaded.decode(chain_ids)[0] == processor.decode(chain_ids)[0]


@pytest.mark.parametrize("part", [SETTINGS_FILE, "tokenizer.json", "image_tokenizer"])
def test_a_folder_without_one_of_its_parts_names_it(tiny_model, tmp_path, part):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns(part, "model.safetensors"))
    with pytest.raises(UserError, match=f"{folder} has no {part}"):
        ChainProcessor.from_pretrained(folder)
    with pytest.raises(UserError, match="no such model folder"):
        ChainProcessor.from_pretrained(tmp_path / "nowhere")


def test_an_unknown_chain_setting_is_named_with_its_file(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    path = folder / SETTINGS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "target": 64}))
    with pytest.raises(UserError, match=rf"{path} has the unknown key 'target'"):
        ChainProcessor.from_pretrained(folder)


def test_settings_that_do_not_fit_are_refused(processor):
    with pytest.raises(UserError, match="target_px 8 is smaller than grid_unit_px 16"):
        ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                       ChainSettings(target_px=8, grid_unit_px=16))
    with pytest.raises(UserError, match="grid_unit_px 18"):
        ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                       ChainSettings(target_px=48, grid_unit_px=18))


def test_a_text_tokenizer_without_a_special_name_is_refused(processor):
    class Renamed:
        """The processor's tokenizer under a vocabulary that lacks a name."""

        def get_vocab(self):
            return {name: token for name, token in processor.tokenizer.get_vocab().items()
                    if name != IMAGE_START}

    with pytest.raises(UserError, match=IMAGE_START):
        ChainProcessor(Renamed(), processor.image_tokenizer, processor.settings)


@pytest.mark.parametrize("question", ["Restore it.", "Restore it. <|image|>", "Restore <|image|> now. ",
                                      " Why? ", "<|image|>"])
def test_a_question_is_read_back_so_that_it_makes_the_same_prompt(processor, question):
    image = photo("coffee")
    prompt = processor.encode_prompt(image, question)
    assert processor.encode_prompt(image, processor.question_of(prompt)) == prompt
    assert processor.question_of(processor.encode_prompt(image)) == processor.chain.question
