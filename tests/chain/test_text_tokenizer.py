"""The small text tokenizer: every text survives it, tags are single tokens, and it has the image
vocabulary by name.
"""

from __future__ import annotations

import pytest

from realsr_r1.chain.spec import close_tag, open_tag
from realsr_r1.chain.text import SECTIONS, render_chain
from realsr_r1.chain.text_tokenizer import train_text_tokenizer
from realsr_r1.chain.tokens import BOS, IMAGE_START, PAD, UNK, TokenLayout, code_name

TEXTS = {"degradation": "light blur, downsample, medium noise, light compression, upsample",
         "rough_understand": "A cat.", "middle_understand": "A ginger cat.",
         "final_understand": "A cat, each whisker sharp."}
ODD = ["", " ", "Zürich, 東京 🙂\n\ttwo  blanks", "<|image|> </a><b", "x" * 300]


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer([render_chain(TEXTS)] * 4, vocab_size=512, codebook_size=20, max_units=4)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.parametrize("text", [render_chain(TEXTS), *ODD])
def test_every_text_is_read_back_as_it_was(tokenizer, text):
    ids = plain(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(UNK) not in ids


@pytest.mark.parametrize("name", SECTIONS)
def test_a_tag_of_the_chain_is_one_token(tokenizer, name):
    assert len(plain(tokenizer, open_tag(name))) == len(plain(tokenizer, close_tag(name))) == 1


def test_text_training_gives_the_layout_its_names(tokenizer):
    layout = TokenLayout.from_vocabulary(tokenizer.get_vocab(), 20, grid_unit_px=16, downsample=4)
    assert len(layout.code_ids) == 20 and sorted(layout.size_ids) == [1, 2, 3, 4]
    assert (tokenizer.bos_token, tokenizer.pad_token) == (BOS, PAD)
    assert len(tokenizer) == layout.vocab_size


def test_names_of_special_tokens_in_a_text_stay_text(tokenizer):
    special = {tokenizer.convert_tokens_to_ids(name) for name in (BOS, PAD, IMAGE_START, code_name(3))}
    assert special.isdisjoint(plain(tokenizer, f"{BOS} {PAD} {IMAGE_START}{code_name(3)}"))
