"""Promises of taggers and captioners from the Hub: both kinds of model load, are asked in batches,
and answer in the right form.

The models are random and tiny, with the published classes: they talk nonsense, but through the same
code as trained ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.data.photos import annotators as hf_annotators
from realsr_r1.data.photos.decoding import decode
from realsr_r1.data.photos.sources import FilePlace, Photo

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", ",", "cat", "dog", "cup", "Name", "things", "one", "two",
         "three", "."]
CHAT = ("{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' "
        "%}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}")


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)},
                                       unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>",
                                   eos_token="</s>", unk_token="<unk>",
                                   additional_special_tokens=["<image>"], padding_side="left",
                                   model_max_length=64)


@pytest.fixture(scope="module")
def answering_model(tmp_path_factory):
    """A LLaVA of two layers of 16."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**sizes, image_size=32, patch_size=16),
                         text_config=LlamaConfig(**sizes, vocab_size=len(WORDS), pad_token_id=0,
                                                 bos_token_id=1, eos_token_id=2),
                         image_token_index=WORDS.index("<image>"),
                         vision_feature_select_strategy="default", vision_feature_layer=-1)
    folder = tmp_path_factory.mktemp("llava")
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(pixels, tokenizer(), patch_size=16, vision_feature_select_strategy="default",
                   image_token="<image>",
                   num_additional_image_tokens=1, chat_template=CHAT).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def detecting_model(tmp_path_factory):
    """An OWL-ViT of two layers of 16."""
    import torch
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = OwlViTConfig(vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=16,
                          text_config={**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 16,
                                       "pad_token_id": 0})
    folder = tmp_path_factory.mktemp("owlvit")
    OwlViTForObjectDetection(config).save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessor(size={"height": 32, "width": 32}),
                    tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(photos_dir: Path):
    return [decode(Photo(name, FilePlace(str(photos_dir / name)))) for name in ("chelsea.png", "coffee.png")]


def test_a_model_that_answers_gives_tags_and_three_descriptions(answering_model, images):
    tags = hf_annotators.tagger(answering_model, {"prompt": "Name things", "max_new_tokens": 4})(images)
    assert len(tags) == 2 and all(isinstance(tag, str) for found in tags for tag in found)
    describe = hf_annotators.captioner(answering_model, {"levels": ["rough", "middle", "final"],
                                                       "rough": "one", "middle": "two", "final": "three",
                                                         "max_new_tokens": 3})
    texts = describe(images)
    assert [set(text) for text in texts] == [{"rough", "middle", "final"}] * 2
    assert describe(images) == texts


def test_a_detector_gives_the_labels_it_is_asked_for(detecting_model, images):
    found = hf_annotators.tagger(detecting_model,
                                 {"candidate_labels": ["cat", "dog", "cup"], "threshold": 0.0})(images)
    assert len(found) == 2
    assert all(set(labels) <= {"cat", "dog", "cup"} and len(labels) == len(set(labels)) >= 1
               for labels in found)


def test_a_missing_prompt_is_named(answering_model):
    with pytest.raises(UserError, match="'prompt'.*--annotation"):
        hf_annotators.tagger(answering_model, {})
