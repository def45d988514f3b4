"""Chains to train on: the degradation has one form, wordings vary, and only the answer is learned.
"""

from __future__ import annotations

import pytest

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import SECTIONS, parse_chain
from realsr_r1.data.tokens.cold_start import (
    chain_texts,
    encode_records,
    listed,
)
from realsr_r1.data.tokens.samples import QUESTION

from ...small import records

PUBLISHED = ChainSpec.published()
RECORD = {"tag": ["cat", "whisker, ear"],
          "degradation": ["light blur", "keep", "heavy noise", "medium compression", "upsample"],
          "descriptions": ["A cat on a chair.", "A ginger cat.", "Each whisker is sharp."]}


@pytest.fixture(scope="module")
def processor(tiny_model):
    return ChainProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def batch():
    return records(5)


@pytest.fixture(scope="module")
def encoded(processor, batch):
    return encode_records(batch, list(range(10, 15)), processor, seed=0)


@pytest.mark.parametrize("tags, phrase", [
    ([], ""), (["cat"], "cat"), (["cat", "dog"], "cat and dog"),
    (["cat, dog , ", "tree"], "cat, dog and tree")])
def test_tags_are_listed_as_a_phrase(tags, phrase):
    assert listed(tags) == phrase


def test_the_degradation_is_canonical_whatever_the_wording():
    assert {chain_texts(RECORD, 0, index)["degradation"] for index in range(20)} == {
        "light blur, keep, heavy noise, medium compression, upsample"}


def test_wordings_vary_and_a_record_keeps_its_own():
    chains = [chain_texts(RECORD, 0, index) for index in range(200)]
    for section in PUBLISHED.about("description"):
        assert len({chain[section.name] for chain in chains}) == len(section.wordings) >= 6
    assert chains == [chain_texts(RECORD, 0, index) for index in range(200)]
    assert chains != [chain_texts(RECORD, 1, index) for index in range(200)]


def test_every_wording_says_the_description_or_the_tags():
    for index in range(200):
        texts = chain_texts(RECORD, 0, index)
        assert ("cat on a chair." in texts["rough_understand"]
                or "cat, whisker and ear" in texts["rough_understand"])
        assert "ginger cat." in texts["middle_understand"]
        assert "ach whisker is sharp." in texts["final_understand"]


@pytest.mark.parametrize("descriptions", [None, []])
@pytest.mark.parametrize("tags", [[], ["cat"]])
def test_records_without_tags_or_descriptions_still_have_sentences(descriptions, tags):
    for index in range(20):
        texts = chain_texts({**RECORD, "tag": tags, "descriptions": descriptions}, 0, index)
        assert all(("cat" in text) == bool(tags) for name, text in texts.items() if name != "degradation")
        assert not any(" ." in text or "  " in text for text in texts.values())


def test_an_encoded_record_is_a_prompt_and_a_well_formed_answer(processor, batch, encoded):
    layout = processor.layout
    for row, sample in enumerate(encoded):
        ids, length = sample.input_ids, sample.sections.count(QUESTION)
        assert ids[:length] == processor.encode_prompt(batch["image"][row], batch["problem"][row])
        assert ids[-1] == layout.end_of_turn and ids.count(layout.end_of_turn) == 2
        text, images = processor.decode(ids[length:])
        chain = parse_chain(text)
        assert chain.is_well_formed and [image.size for image in images] == [(16, 16), (32, 32), (48, 48)]
        record = {name: values[row] for name, values in batch.items()}
        assert {name: body for name, body in chain.sections.items()
                if not name.endswith("_image")} == chain_texts(record, 0, 10 + row)


def test_the_answers_images_are_the_hq_photo_at_three_sizes(processor, batch, encoded):
    ids = encoded[2].input_ids
    expected = processor.encode_images(list(processor.chain_images(processor.fit(batch["hq"][2])).values()))
    found = processor.layout.find_spans(ids)[1:]
    assert [processor.layout.span(span.codes) for span in found] == expected


def test_a_record_is_encoded_alike_alone_and_in_a_batch(processor, batch, encoded):
    alone = encode_records({name: values[3:4] for name, values in batch.items()}, [13], processor, seed=0)
    assert alone == [encoded[3]]


def test_every_token_of_the_answer_has_its_section_and_the_question_has_none(processor, encoded):
    for sample in encoded:
        length = sample.sections.count(QUESTION)
        assert len(sample.sections) == len(sample.input_ids)
        assert (QUESTION not in sample.sections[length:]
                and sample.sections[-1] == PUBLISHED.parts.index("tags"))
        by_section = {name: [token for token, part in zip(sample.input_ids, sample.sections, strict=True)
                             if part == number]
                      for number, name in enumerate(PUBLISHED.parts)}
        chain = parse_chain(processor.decode_text(sample.input_ids[length:]))
        for section in PUBLISHED.sections:
            if section.is_image:
                assert len(processor.layout.find_spans(by_section[section.name])) == 1
            else:
                assert processor.decode_text(by_section[section.name]) == chain.sections[section.name]
        assert set(by_section) - {name for name, ids in by_section.items() if ids} == {"text", "image"}
        assert len(SECTIONS) == len(set(sample.sections)) - 2
