"""The text tokenizer as trainers see it: it shows images in texts and saves the whole processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor


class RenderingTokenizer(PreTrainedTokenizerFast):
    """The text tokenizer as TRL sees it.

    It decodes an image to `<|image|>`, and saving it saves the whole processor.
    """

    processor: ChainProcessor

    @classmethod
    def of(cls, processor: ChainProcessor) -> RenderingTokenizer:
        """Return the tokenizer of `processor` in this form."""
        source = processor.tokenizer
        tokenizer = cls(tokenizer_object=source.backend_tokenizer, bos_token=source.bos_token,
                        padding_side="left",
                        pad_token=source.convert_ids_to_tokens(processor.layout.pad),
                        eos_token=source.convert_ids_to_tokens(processor.layout.end_of_turn))
        tokenizer.processor = processor
        return tokenizer

    def batch_decode(self, sequences: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[str]:
        """Decode ids into texts, with `<|image|>` for an image."""
        return [self.processor.decode_text(ids) for ids in sequences]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """Save tokenizer, image tokenizer and chain settings.

        So a checkpoint is a complete model folder.
        """
        self.processor.save_pretrained(save_directory)
        return ()
