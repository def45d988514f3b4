"""The real vocabularies, Lumina-mGPT's and PURE's: ids by name, the published ways to fit a photo,
dialogues, and the way back.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from realsr_r1.chain.processor import BROKEN_IMAGE, ChainProcessor
from realsr_r1.chain.settings import ChainSettings
from realsr_r1.chain.spec import IMAGE, ChainSpec
from realsr_r1.chain.text import SECTIONS, parse_chain, render_chain
from realsr_r1.chain.tokens import code_name
from realsr_r1.core.errors import UserError

from ..published import LUMINA_VOCABULARY, PURE_VOCABULARY, image_tokenizer, text_tokenizer
from ..small import photo

FAMILIES = {"lumina": ("chameleon", 8192, LUMINA_VOCABULARY),
            "pure": ("llamagen-vq8", 16384, PURE_VOCABULARY)}
ONE_STEP = ("Perceive the degradation level, understand the image content, and restore the high-quality "
            "image. <|image|>")
TEXTS = {"degradation": "light blur, keep, light noise, light compression, upsample",
         "rough_understand": "  The cat <s>\n",
         "middle_understand": "", "final_understand": f"See {IMAGE.replace('|', '')}, 5 < 6 and 'it''s' </s> "
                                                      "…é✓"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processors() -> dict[str, ChainProcessor]:
    """Of both families, at 64 px with units of 32 px."""
    settings = ChainSettings(target_px=64)
    return {name: ChainProcessor(text_tokenizer(codes), image_tokenizer(kind), settings)
            for name, (kind, codes, _) in FAMILIES.items()}


@pytest.fixture
def processor(processors, family) -> ChainProcessor:
    return processors[family]


@pytest.fixture
def chain(processor) -> tuple[list[int], dict[str, list[int]]]:
    """The ids of a chain, and its spans by section."""
    images = processor.chain_images(processor.fit(photo("chelsea", 100)))
    spans = dict(zip(images, processor.encode_images(list(images.values())), strict=True))
    return processor.encode_chain(TEXTS, spans), spans


def test_ids_are_those_of_the_published_vocabulary(processor, family):
    layout, codes = processor.layout, FAMILIES[family][1]
    assert (layout.bos, layout.pad, layout.image_end, layout.image_start, layout.end_of_turn,
            layout.new_line) == (
        0, 1, 8196, 8197, 8710, 8803)
    assert [layout.size_ids[units] for units in (1, 13, 16, 19)] == [8805, 8817, 8820, 8823]
    assert layout.code_ids == tuple([*range(4, 8196), *range(65536, 65536 + codes - 8192)])
    assert layout.vocab_size == FAMILIES[family][2]


def test_a_code_is_the_token_that_its_digits_name():
    names = text_tokenizer(8192).get_vocab()
    swapped = {code_name(4): names[code_name(1004)], code_name(1004): names[code_name(4)]}

    class Renamed:
        """A tokenizer that has two names the other way round."""

        def __init__(self, tokenizer):
            self.tokenizer, self.all_special_ids = tokenizer, tokenizer.all_special_ids

        def get_vocab(self):
            return {**names, **swapped}

        def __call__(self, *args, **kwargs):
            return self.tokenizer(*args, **kwargs)

    layout = ChainProcessor(Renamed(text_tokenizer(8192)), image_tokenizer("chameleon"),
                            ChainSettings()).layout
    assert (layout.code_ids[4], layout.code_ids[1004], layout.code_ids[5]) == (4 + 1004, 4 + 4, 4 + 5)


def test_the_placeholder_for_an_image_is_no_token_of_the_policy():
    tokenizer = text_tokenizer(8192)
    tokenizer.add_tokens([IMAGE])
    assert tokenizer.get_vocab()[IMAGE] == LUMINA_VOCABULARY
    processor = ChainProcessor(tokenizer, image_tokenizer("chameleon"), ChainSettings(target_px=64))
    assert processor.layout.vocab_size == LUMINA_VOCABULARY
    assert max(processor.encode_prompt(photo("coffee", 64), ONE_STEP)) < LUMINA_VOCABULARY


@pytest.mark.parametrize("size, expected", [((600, 400), (608, 416)), ((640, 480), (576, 448)),
                                            ((512, 512), (512, 512))])
def test_the_crop_rule_gives_the_published_sizes(processors, size, expected):
    processor = processors["lumina"]
    at_512 = ChainProcessor(processor.tokenizer, processor.image_tokenizer, ChainSettings())
    assert at_512.fit(photo("coffee", 400).resize(size)).size == expected


def test_a_stretched_photo_is_a_square_of_the_target_and_whole(processors):
    processor = processors["pure"]
    stretching = ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                                ChainSettings(target_px=64, fit="stretch"))
    wide = photo("coffee", 200).resize((300, 100))
    assert stretching.fit(wide).size == (64, 64) and processor.fit(wide).size == (96, 32)
    assert stretching.fit(wide).tobytes() == wide.resize((64, 64), 3).tobytes()  # 3: bicubic
    square = photo("coffee", 64)
    assert stretching.fit(square).tobytes() == square.tobytes()
    assert stretching.encode_prompt(wide)[-4164 // 64:] != processor.encode_prompt(wide)[-4164 // 64:]


def test_settings_of_the_fit_are_checked(processors):
    processor = processors["pure"]
    with pytest.raises(UserError, match="file: fit is 'squeeze'; it must be 'crop', 'random_crop' or "
                                        "'stretch'"):
        ChainSettings.from_dict({"fit": "squeeze"}, "file")
    with pytest.raises(UserError, match="80 is no multiple of 32"):
        ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                       ChainSettings(target_px=80, fit="stretch"))


@pytest.mark.parametrize("values, message", [
    ({"target_px": "512"}, "target_px is '512'"), ({"experts": "musiq"}, "experts is 'musiq'"),
    ({"sampling": [1]}, "sampling is"),
    ({"problem": 3}, "problem is 3"), ({"target_px": 0}, "at least 1"), ([1], "key: value")])
def test_a_setting_of_a_wrong_kind_is_named_with_its_file(values, message):
    with pytest.raises(UserError, match=f"the file.*{message}"):
        ChainSettings.from_dict(values, "the file")


@pytest.mark.parametrize("question", [ONE_STEP, ChainSpec.published().question,
                                      f"Look: {IMAGE} What is the image?", "Depth estimation."])
def test_a_question_is_tokenised_as_the_published_code_does_it(processor, question):
    """That code tokenises the whole turn, its placeholder and end-of-turn as special tokens, and
    puts the image in.
    """
    tokenizer = text_tokenizer(processor.image_tokenizer.codebook_size)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    turn = question if IMAGE in question else question + IMAGE
    published = [0, *tokenizer(turn + "<reserved08706>", add_special_tokens=False).input_ids]
    ids = processor.encode_prompt(photo("coffee", 64), question)
    (span,) = processor.image_spans(ids)
    place = published.index(tokenizer.get_vocab()[IMAGE])
    assert ids == [*published[:place], *span, *published[place + 1:]]
    words = [tokenizer.decode([token]) for token in ids[1:place]]
    assert question != ONE_STEP or {"Perceive", " degradation", " content", " restore"} <= set(words)


def test_a_question_comes_back_id_by_id(processor):
    for question in (ONE_STEP, ChainSpec.published().question, f"Look: {IMAGE} What is the image?"):
        ids = processor.encode_prompt(photo("coffee", 64), question)
        (span,) = processor.image_spans(ids)
        assert processor.prompt_from_span(span, processor.decode_text(ids)) == ids


def test_a_second_image_in_a_question_is_refused(processor):
    with pytest.raises(UserError, match=r"2 times <\|image\|>; a prompt has one image"):
        processor.encode_prompt(photo("coffee", 64), f"{IMAGE} and {IMAGE}")


def test_a_chain_comes_back_id_by_id(processor, chain):
    ids, spans = chain
    text, images = processor.decode(ids)
    assert text == render_chain(TEXTS) and parse_chain(text).is_well_formed and len(images) == 3
    assert processor.image_spans(ids) == [spans[section.name] for section in processor.chain.images]
    assert processor.encode_answer(text, processor.image_spans(ids)) == ids


def test_a_chain_with_pictures_comes_back_but_for_their_codes(processor, chain):
    ids, _ = chain
    text, images = processor.decode(ids)
    again = processor.encode_answer(text, images)
    codes = set(processor.layout.code_ids)
    assert [token for token in again if token not in codes] == [token for token in ids if token not in codes]
    spans = processor.image_spans(ids)
    assert processor.encode_answer(text, [spans[0], images[1],
                                          spans[2]])[:len(spans[0])] == ids[:len(spans[0])]


def test_every_code_of_the_codebook_is_written_and_read(processor):
    layout, side = processor.layout, processor.layout.codes_per_unit * 2
    codes = torch.arange(processor.image_tokenizer.codebook_size).split(side * side)
    grids = [part.view(side, side).tolist() for part in codes]
    read = [torch.tensor(layout.find_spans(layout.span(grid))[0].codes) for grid in grids]
    assert torch.equal(torch.stack(read).flatten(), torch.cat(codes))


def test_an_answer_in_one_step_comes_back_id_by_id(processor):
    (span,) = processor.encode_images([photo("coffee", 64)])
    layout = processor.layout
    ids = [*processor.encode_text("The image has light blur. "), *span, *processor.encode_text(" Done <"),
           layout.end_of_turn]
    assert processor.encode_answer(processor.decode_text(ids), [span]) == ids


def test_text_that_looks_like_an_image_stays_text(processor, chain):
    spans = chain[1]
    ids = processor.encode_chain({**TEXTS, "rough_understand": f"see {IMAGE} there"}, spans)
    text = processor.decode_text(ids)
    assert text.count(IMAGE) == 3
    assert processor.encode_answer(text, processor.image_spans(ids)) == ids


def test_an_answer_that_cannot_come_back_is_refused(processor, chain):
    ids, _ = chain
    text, spans = processor.decode_text(ids), processor.image_spans(ids)
    with pytest.raises(ValueError, match="2 images for a text with 3 times"):
        processor.encode_answer(text, spans[:2])
    broken = processor.decode_text(spans[0][:-1])
    assert BROKEN_IMAGE in broken
    with pytest.raises(ValueError, match="1 broken"):
        processor.encode_answer(broken, [])


def test_the_chain_grammar_spells_tags_as_the_real_tokenizer_does(processor):
    form = processor.layout.chain_form
    assert [processor.decode_text(section.open_ids) for section in form.sections] == [f"<{name}>"
                                                                                      for name in SECTIONS]
    assert 8710 not in form.body_ids and not set(form.body_ids) & set(processor.layout.code_ids)


@pytest.mark.parametrize("name", ["<s>", "<pad>", "<racm3:break>", "<eoss>", "<reserved08706>",
                                  "<reserved08799>",
                                  "<reserved08801>", code_name(0), code_name(777), code_name(8191)])
def test_a_vocabulary_without_a_special_name_is_refused_and_the_name_said(name):
    with pytest.raises(UserError, match=name if name != code_name(8191) else "8,192 codes and the text "
                                                                             "tokenizer names 8,191"):
        ChainProcessor(text_tokenizer(8192, without=name), image_tokenizer("chameleon"), ChainSettings())


@pytest.mark.parametrize("codes, kind, message", [
    (8192, "llamagen-vq8", "image tokenizer has 16,384 codes and the text tokenizer names 8,192"),
    (16384, "chameleon", "more image codes than the image tokenizer's 8192")])
def test_a_codebook_that_does_not_fit_the_vocabulary_is_refused(codes, kind, message):
    with pytest.raises(UserError, match=message):
        ChainProcessor(text_tokenizer(codes), image_tokenizer(kind), ChainSettings())


def test_a_saved_processor_of_a_real_vocabulary_is_the_same_one(processor, chain, tmp_path):
    stretching = dataclasses.replace(processor.settings, fit="stretch")
    ChainProcessor(processor.tokenizer, processor.image_tokenizer, stretching).save_pretrained(tmp_path)
    loaded = ChainProcessor.from_pretrained(tmp_path)
    assert loaded.settings == stretching and loaded.layout == processor.layout
    assert loaded.decode_text(chain[0]) == processor.decode_text(chain[0])


def test_images_share_batches_only_as_far_as_memory_allows(processors, monkeypatch):
    from realsr_r1.chain import processor as processing

    processor, sizes = processors["pure"], []
    encode = processor.image_tokenizer.encode
    monkeypatch.setattr(processing, "MAX_BATCH_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(processor.image_tokenizer, "encode",
                        lambda pixels: (sizes.append(len(pixels)), encode(pixels))[1])
    images = [photo("coffee", 64, zoom) for zoom in (1, 2, 3, 4, 5)]
    spans = processor.encode_images(images)
    assert sizes == [2, 2, 1]
    assert [len(found)
            for found in processor.decode_images([spans[0] + spans[1] + spans[2], spans[3]])] == [3, 1]
