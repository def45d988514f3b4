"""A small vocabulary with a chain, and random policies over it."""

from __future__ import annotations

import torch

from realsr_r1.chain.tokens import ChainForm, SectionForm, TokenLayout
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

CODES = tuple(range(10, 26))


def make_layout(codes: tuple[int, ...] = CODES, untagged: tuple[float | None, ...] = ()) -> TokenLayout:
    """44 ids: specials 0-9, 16 codes, text 26-37, tags 38-43.
    Image units of 2 codes; code n isn't the n-th id.

    `untagged`: the shares of a chain of its own (None: a text), without tags; by default the
    published chain's form.
    """
    shares = (None, None, 0.25, None, 0.5, None, 1.0)
    sections = [SectionForm((), (), share) for share in untagged] or [
        SectionForm((38, 39 + number % 3), (42, 39 + number % 3, 43), share)
        for number, share in enumerate(shares)]
    return TokenLayout(bos=0, pad=1, end_of_turn=2, image_start=3, image_end=4, new_line=5,
                       size_ids={1: 6, 2: 7, 3: 8}, code_ids=codes[::-1], vocab_size=44, grid_unit_px=8,
                       downsample=4, chain_form=ChainForm(tuple(sections), tuple(range(26, 38))))


def make_policy(seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 0.3,
                **changes) -> LuminaPolicy:
    """A random policy whose choices are far from even; 46 logits, two more than the layout has ids.
    """
    torch.manual_seed(seed)
    shape = dict(vocab_size=46, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0,
                 eos_token_id=2, pad_token_id=1)
    policy = LuminaPolicy(LuminaConfig(**{**shape, **changes}))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return policy.to(dtype).eval()


def make_prompts(layout: TokenLayout) -> list[list[int]]:
    """Three prompts of different lengths, each with an image: of 1x1, 2x1 and 3x3 units."""
    def prompt(rows: int, columns: int, text: list[int]) -> list[int]:
        codes = [[(3 * row + column) % 16 for column in range(2 * columns)] for row in range(2 * rows)]
        return [layout.bos, *text, *layout.span(codes), layout.end_of_turn]

    return [prompt(1, 1, [30, 31]), prompt(2, 1, [26, 27, 28, 29]), prompt(3, 3, [33])]
