"""What the benchmarks share: a random policy with PURE's vocabulary, a chain of known length, and
paired timing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.tokens import ChainForm, SectionForm, TokenLayout
from realsr_r1.models import new_config, new_policy

VOCABULARY = 73_728
CODES = (*range(4, 8196), *range(65_536, 73_728))  # ids of PURE's 16,384 image codes
TEXT = range(9_000, 65_000)
CODES_PER_UNIT = 4  # 32 px a grid unit, 8 px a code


def random_policy(hidden_size: int, layers: int, heads: int, intermediate_size: int,
                  vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A policy of this shape with random weights, in float32."""
    torch.manual_seed(0)
    return new_policy(new_config(
        vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=intermediate_size,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=16_384, pad_token_id=1)).eval()


def chain_layout(chain: ChainSpec | None = None) -> TokenLayout:
    """PURE's ids; tags of three tokens, for the sections of `chain` (the published one by default).

    With bodies of five tokens the published chain has 63 tokens beside its images.
    """
    sections = tuple(SectionForm((8_900, 8_901 + number, 8_910), (8_911, 8_901 + number, 8_910),
                                 section.share)
                     for number, section in enumerate((chain or ChainSpec.published()).sections))
    return TokenLayout(bos=0, pad=1, end_of_turn=8_710, image_start=8_197, image_end=8_196, new_line=8_803,
                       size_ids={units: 8_804 + units for units in range(1, 65)}, code_ids=CODES,
                       vocab_size=VOCABULARY, grid_unit_px=32, downsample=8,
                       chain_form=ChainForm(sections, tuple(TEXT)))


def prompt_of(layout: TokenLayout, units: int, length: int) -> list[int]:
    """A prompt of `length` tokens with one image of `units` x `units` grid units."""
    side = units * layout.codes_per_unit
    span = layout.span([[(7 * row + column) % len(CODES) for column in range(side)] for row in range(side)])
    text = [TEXT[number] for number in range(length - len(span) - 2)]
    return [layout.bos, *text, *span, layout.end_of_turn]


def paired_seconds(runs: Mapping[str, Callable[[], float | None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in turn (so that what else the machine does hits all
    alike).

    A run that returns a number has timed itself. Each is run once before, unmeasured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            own = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started if own is None else own)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Median over the turns of seconds of `name` / seconds of `to`."""
    return statistics.median(mine / other for mine, other in zip(seconds[name], seconds[to], strict=True))
