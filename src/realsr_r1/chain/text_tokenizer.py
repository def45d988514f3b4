"""The text tokenizer of a small model: byte-level BPE with the special-token names of Lumina-mGPT.

A published policy brings its own tokenizer. This module makes one for a policy that is trained from
random weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from realsr_r1.chain.tokens import (
    BOS,
    END_OF_TURN,
    EOS,
    IMAGE_END,
    IMAGE_START,
    NEW_LINE,
    PAD,
    UNK,
    code_name,
    size_name,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A tag of the chain is one piece, so that a frequent tag can become a single token. The other
# pieces are words, numbers, punctuation and white space.
PIECES = r"</?[a-z_]+>|\s?\p{L}+|\s?\p{N}+|\s?[^\s\p{L}\p{N}<]+|<|\s+"


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, codebook_size: int,
                         max_units: int) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer of `vocab_size` text tokens, and add the names of the image tokens.

    The image tokens follow the text tokens: `codebook_size` codes, and sizes of 1 to `max_units`
    grid units.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    names = [IMAGE_END, IMAGE_START, END_OF_TURN, NEW_LINE]
    names += [size_name(units) for units in range(1, max_units + 1)]
    names += [code_name(code) for code in range(codebook_size)]
    tokenizer.add_special_tokens(names)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
                                   unk_token=UNK)
