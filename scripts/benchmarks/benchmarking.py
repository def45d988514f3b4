"""What the benchmarks share: random policies of known shapes, a chain of known length, the plan's
numbers for them, and paired timing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.tokens import ChainForm, SectionForm, TokenLayout
from realsr_r1.models import new_config, new_policy
from realsr_r1.models.protocol import PolicyShape
from realsr_r1.planning.workload import Sharding, TokenizerShape, Workload

VOCABULARY = 73_728
CODES = (*range(4, 8196), *range(65_536, 73_728))  # ids of PURE's 16,384 image codes
TEXT = range(9_000, 65_000)
CODES_PER_UNIT = 4  # 32 px a grid unit, 8 px a code


# The shapes that the benchmarks measure; the last two are those of the published models.
PRESETS = {"small": PolicyShape(256, 688, 4, 4, 4, VOCABULARY),
           "large": PolicyShape(1024, 2752, 8, 8, 8, VOCABULARY),
           "pure_7b": PolicyShape(4096, 11_008, 32, 32, 32, VOCABULARY),
           "lumina_7b": PolicyShape(4096, 11_008, 32, 32, 32, 65_536)}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16")}


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add --device, --dtype and --threads."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the policy (default: float32)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")


def random_policy(shape: PolicyShape, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """A policy of this shape with random weights, which are made on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            return new_policy(new_config(
                vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads, max_position_embeddings=16_384, pad_token_id=1)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def workload(shape: PolicyShape, *, prompt: int, completion: int, generations: int, micro: int | None = None,
             images: tuple[int, ...] = (), span: int = 0, checkpointing: bool = True, dtype: str = "float32",
             adapters: int = 0, on_gpu: bool = False) -> Workload:
    """A step on one device as the plan sees it, without image tokenizer and experts.

    `micro`: completions in one microbatch (default: the whole group). `images`: tokens of the
    chain's images, by default one that is the whole completion. `adapters`: parameters of LoRA.
    """
    codes = min(len(CODES), shape.vocabulary // 2)
    return Workload(
        shape, TokenizerShape(0, (0, 0), codes, 8, 0.0), Sharding(), world=1, prompt=prompt,
        completion=completion, expected=completion, images=images or (completion,), largest_px=0, prompts=1,
        generations=generations, micro=micro or generations, iterations=1, updates=1.0, span=span,
        checkpointing=checkpointing, share_prompts=True, flash=on_gpu,
        weight_bytes=DTYPES[dtype].itemsize, autocast=False, trained=adapters or shape.parameters,
        adapters=adapters, quantised_bits=0, nested=False, reference=False, old_scores=False, experts=(),
        triton=on_gpu)


def synchronize(device: str) -> None:
    """Wait until a GPU has done all that was started."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def copied_bytes_a_second(device: str) -> float:
    """The bandwidth of the device's memory: bytes that a copy reads and writes, median of five."""
    size = 2**31 if device.startswith("cuda") else 2**27
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / statistics.median(seconds[1:])


def peak_bytes_on(device: str) -> int | None:
    """Bytes that torch held at most on a GPU since the last call; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def chain_layout(chain: ChainSpec | None = None, vocabulary: int = VOCABULARY) -> TokenLayout:
    """PURE's ids; tags of three tokens, for the sections of `chain` (the published one by default).

    With bodies of five tokens the published chain has 63 tokens beside its images. A smaller
    vocabulary has the codes that are in it.
    """
    sections = tuple(SectionForm((8_900, 8_901 + number, 8_910), (8_911, 8_901 + number, 8_910),
                                 section.share)
                     for number, section in enumerate((chain or ChainSpec.published()).sections))
    return TokenLayout(bos=0, pad=1, end_of_turn=8_710, image_start=8_197, image_end=8_196, new_line=8_803,
                       size_ids={units: 8_804 + units for units in range(1, 65)},
                       code_ids=tuple(code for code in CODES if code < vocabulary), vocab_size=vocabulary,
                       grid_unit_px=32, downsample=8,
                       chain_form=ChainForm(sections, tuple(TEXT)))


def prompt_of(layout: TokenLayout, units: int, length: int) -> list[int]:
    """A prompt of `length` tokens with one image of `units` x `units` grid units."""
    side, codes = units * layout.codes_per_unit, len(layout.code_ids)
    span = layout.span([[(7 * row + column) % codes for column in range(side)] for row in range(side)])
    text = [TEXT[number] for number in range(length - len(span) - 2)]
    return [layout.bos, *text, *span, layout.end_of_turn]


def paired_seconds(runs: Mapping[str, Callable[[], float | None]], repeats: int,
                   device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in turn (so that what else the machine does hits all
    alike).

    A run that returns a number has timed itself. Each is run once before, unmeasured, unless there
    is one turn only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 if repeats == 1 else 0, repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            own = run()
            synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - started if own is None else own)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Median over the turns of seconds of `name` / seconds of `to`."""
    return statistics.median(mine / other for mine, other in zip(seconds[name], seconds[to], strict=True))
