"""Lumina-mGPT's conversation JSON: every answer is trained on, a chain's sections are known, and
bad records are named.
"""

from __future__ import annotations

import json

import pytest

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.text import IMAGE, render_chain
from realsr_r1.data.tokens.cold_start import chain_texts, encode_records
from realsr_r1.data.tokens.conversations import encode_conversations, read_conversations
from realsr_r1.data.tokens.samples import QUESTION

from ...small import photo, records


@pytest.fixture(scope="module")
def processor(tiny_model):
    return ChainProcessor.from_pretrained(tiny_model)


def encode(processor, folder, *conversations):
    (folder / "talk.json").write_text(json.dumps(conversations))
    return encode_conversations(read_conversations(folder / "talk.json")[:], processor)


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def test_a_chain_written_as_a_conversation_is_the_chain(processor, tmp_path):
    columns = records(1)
    record = {name: values[0] for name, values in columns.items()}
    images = [record["image"], *processor.chain_images(processor.fit(record["hq"])).values()]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    answer = render_chain(chain_texts(record, 0, 0))
    conversation = {"conversations": [turn("human", record["problem"] + IMAGE), turn("gpt", answer)],
                    "image": [f"{number}.png" for number in range(4)]}
    assert encode(processor, tmp_path, conversation) == encode_records(columns, [0], processor, seed=0)


def test_all_answers_of_a_conversation_are_trained_on(processor, tmp_path):
    photo("coffee").save(tmp_path / "a.png")
    photo("chelsea", px=100).save(tmp_path / "b.png")
    sample, = encode(processor, tmp_path, {
        "conversations": [turn("human", f"What is in {IMAGE}?"), turn("gpt", "A cup."),
                          turn("human", "Show a cat."),
                          turn("assistant", f"Here: {IMAGE}")],
        "image": [str(tmp_path / "a.png"), "b.png"]})
    ends = [place for place, token in enumerate(sample.input_ids) if token == processor.layout.end_of_turn]
    assert len(ends) == 4 and ends[-1] == len(sample.input_ids) - 1
    asked = [*range(0, ends[0] + 1), *range(ends[1] + 1, ends[2] + 1)]
    assert [place for place, part in enumerate(sample.sections) if part == QUESTION] == asked
    assert {processor.chain.parts[part] for part in sample.sections if part != QUESTION} == {"text", "image",
                                                                                             "tags"}
    text, images = processor.decode(sample.input_ids)
    assert (text == f"What is in {IMAGE}?A cup.Show a cat.Here: {IMAGE}"
            and [image.size for image in images] == [(48, 48)] * 2)


def test_an_image_without_a_place_stands_before_the_first_question(processor, tmp_path):
    photo("coffee").save(tmp_path / "a.png")
    sample, = encode(processor, tmp_path, {"conversations": [turn("human", "What?"), turn("gpt", "A cup.")],
                                           "image": "a.png"})
    assert processor.decode_text(sample.input_ids) == f"{IMAGE} What?A cup."


@pytest.mark.parametrize("change, named", [
    ({"conversations": []}, "'conversations' must be a list of questions and answers"),
    ({"conversations": [turn("gpt", "Hi"), turn("human", "Hi")]}, "turn 0 must have 'from' 'human'"),
    ({"conversations": [turn("human", "Hi"), {"from": "gpt"}]},
     "turn 1 must have 'from' 'gpt' or 'assistant'"),
    ({"image": ["nowhere.png"]}, "no such image"), ({"image": ["x" * 5000]}, "File name too long"),
    ({"image": ["a\0b"]}, "no such image"), ({"image": ["../a.png"]}, "lies outside of"),
    ({"image": ["link.png"]}, "lies outside of"), ({"image": 3}, "'image' must be a list of paths"),
    ({"image": []}, "0 images for 1 times")])
def test_bad_records_have_a_fault_and_the_others_none(change, named, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    photo("coffee").save(tmp_path / "a.png")
    photo("coffee").save(folder / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    good = {"conversations": [turn("human", IMAGE), turn("gpt", "A cup.")], "image": ["a.png"]}
    (folder / "talk.json").write_text(json.dumps([good, {**good, **change}]))
    found = read_conversations(folder / "talk.json")
    assert found["fault"][0] == "" and named in found["fault"][1]
    assert found["values"][0] == [IMAGE, "A cup."] and found["images"][1] == []
