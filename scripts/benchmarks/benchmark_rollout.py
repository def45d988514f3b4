"""Time and memory of a rollout beside the naive loop (one forward of 2 G rows a token with a growing
cache and the whole head), beside the plan, and beside what the memory's bandwidth allows.

    python scripts/benchmarks/benchmark_rollout.py --preset small [--json FILE]
    python scripts/benchmarks/benchmark_rollout.py --preset small --growth figs/rollout_growth.png
    python scripts/benchmarks/benchmark_rollout.py --preset pure_7b --dtype bfloat16 --device cuda \
        --units 16 --variants graphs --repeats 1
    python scripts/benchmarks/benchmark_rollout.py --model assets/tiny --photo FILE --jacobi 4 8 16

Shapes are in benchmarking.py. All in one process, in turn; ratios are medians over turns. The
engine does all of a rollout; of the naive loop only its forwards are timed, without the prompt.
Variants of the engine: `plain`; `graphs`, its steps as CUDA graphs; `jacobi`, several tokens in a
forward, with graphs on CUDA; `int8`, keys and values as int8, likewise. Floor: bytes that weights
and caches (of the policy's type) take, once a token, at the bandwidth of a copy. Memory: what torch held at most on a GPU, and what `realsr-r1 plan` says of
weights and rollout. With --model: what Jacobi decoding gains, which random weights can't show, for
the middle of a photo, sampled as tiny_grpo.yaml does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmarking import (
    CODES_PER_UNIT,
    PRESETS,
    add_device_flags,
    chain_layout,
    copied_bytes_a_second,
    median_ratio,
    paired_seconds,
    peak_bytes_on,
    prompt_of,
    random_policy,
    synchronize,
    workload,
)
from transformers import DynamicCache, PreTrainedModel

from realsr_r1 import Restorer
from realsr_r1.chain.spec import image_sizes
from realsr_r1.core.images import load_image
from realsr_r1.planning import duration, memory
from realsr_r1.planning.machines import machine
from realsr_r1.planning.workload import Workload
from realsr_r1.rollout import Rollout, RolloutConfig, RolloutEngine

PROMPT, BODY = 338, 5  # tokens of the prompt beside an image of `UNITS`; of a text section's body
UNITS = 4  # grid units of the final image: 16 x 16 codes
VARIANTS = {"plain": {}, "graphs": {"cuda_graphs": True}, "jacobi": {"jacobi": 4},
            "int8": {"cache_dtype": "int8"}}
GIB = 2**30
# Of --growth: G, final images, prompts
GROUPS, SIDES, PROMPTS = (1, 2, 5, 10, 20), (2, 4, 6, 8), (338, 1338, 2338, 4338)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    for name in ("hidden", "layers", "heads", "intermediate"):
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--generations", type=int, default=5, help="G (default: 5)")
    parser.add_argument("--units", type=int, default=UNITS,
                        help="grid units of 32 px along the final image's side (default: 4)")
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (default: 50 or so beside a photo "
                                                   "of the final image's size)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain"], help="(default: plain)")
    parser.add_argument("--naive_tokens", type=int, help="tokens that the naive loop writes, 0 for no loop "
                                                         "(default: as many as the engine)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    add_device_flags(parser)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--model", help="model folder: time Jacobi decoding beside one token at a time")
    parser.add_argument("--photo", help="the degraded photo that --model restores")
    parser.add_argument("--jacobi", type=int, nargs="+", default=[8], help="windows of --model (default: 8)")
    parser.add_argument("--growth", type=Path, metavar="PNG", help="plot time over G, image sizes and "
                                                                   "prompts instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.model:
        tell(with_jacobi(args), args.json)
        return
    shape = PRESETS[args.preset]
    named = {"hidden": args.hidden, "layers": args.layers, "heads": args.heads, "kv_heads": args.heads,
             "intermediate": args.intermediate}
    shape = replace(shape, **{name: value for name, value in named.items() if value})
    policy = random_policy(shape, args.device, args.dtype)
    if args.growth:
        figures = growth(policy, args.growth, args.repeats)
    else:
        figures = {"preset": args.preset, "hidden": shape.hidden, "layers": shape.layers,
                   "generations": args.generations, "device": args.device, "dtype": args.dtype,
                   "threads": args.threads, **against_naive(policy, args)}
    tell(figures, args.json)


def tell(figures: Mapping[str, object], path: Path | None) -> None:
    """Print figures, and write them where `path` is given."""
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def with_jacobi(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a group's rollout at each window beside one token at a time, and passes a token."""
    restorer = Restorer.from_pretrained(args.model, args.device, temperature=1.0, guidance_scale=1.0,
                                        text_top_k=10, image_top_k_max=100)
    photo = load_image(args.photo)
    side = min(restorer.processor.settings.target_px, *photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    prompt = restorer.processor.encode_prompt(photo.crop((left, top, left + side, top + side)))
    written: dict[str, Rollout] = {}

    def write(name: str, engine: RolloutEngine) -> None:
        written[name] = engine.generate(prompt)

    runs = {str(window): partial(write, str(window), RolloutEngine(
        restorer.engine.policy, restorer.processor, replace(
            restorer.engine.config, num_generations=args.generations, jacobi=window)))
        for window in (1, *args.jacobi)}
    seconds = paired_seconds(runs, args.repeats, args.device)
    found: dict[str, float] = {"generations": args.generations, "1, s": statistics.median(seconds["1"])}
    for name in map(str, args.jacobi):
        found |= {f"{name} / 1": median_ratio(seconds, name, "1"),
                  f"{name}, passes a token": sum(written[name].forwards) / sum(
                      map(len, written[name].completion_ids))}
    return found


def engine_for(policy: PreTrainedModel, generations: int, units: int = UNITS, length: int | None = None,
               **settings: object) -> tuple[RolloutEngine, list[int]]:
    """An engine that writes whole chains with a final image of `units` x `units`, and a prompt with
    such an image.

    `length`: tokens of the prompt (default: `PROMPT` where the image is of `UNITS`).
    """
    layout = chain_layout(vocabulary=policy.config.vocab_size)
    sizes = image_sizes(layout.chain_form.shares, units, units)
    images = sum(layout.span_length(*size) for size in sizes)
    tags = sum(len(section.open_ids) + len(section.close_ids) for section in layout.chain_form.sections)
    config = RolloutConfig(num_generations=generations, max_new_tokens=images + tags + 4 * BODY + 1,
                           grammar="chain", image_sizes=sizes, max_text_tokens=BODY, guidance_scale=0.8,
                           **settings)
    span = layout.span_length(units, units)
    length = length or PROMPT + span - layout.span_length(UNITS, UNITS)
    # Of a prompt that is too short for such an image the photo is smaller.
    shown = max(side for side in range(1, units + 1) if layout.span_length(side, side) + 2 <= length)
    return RolloutEngine(policy, layout, config), prompt_of(layout, shown, length)


def against_naive(policy: PreTrainedModel, args: argparse.Namespace) -> dict[str, float]:
    """Seconds, rates, ratios and memory of the engine's variants, of prefilling, of the naive loop."""
    engines = {}
    for name in args.variants:
        settings = VARIANTS[name] | ({"cuda_graphs": True} if name != "plain" and
                                     args.device.startswith("cuda") else {})
        engines[name], prompt = engine_for(policy, args.generations, args.units, args.prompt, **settings)
    layout = engines[args.variants[0]].layout
    for name in engines:  # a library's set-up, and building kernels, belong to no turn
        few = RolloutConfig(num_generations=args.generations, max_new_tokens=8, **VARIANTS[name])
        RolloutEngine(policy, layout, few).generate(prompt)
    written: dict[str, Rollout] = {}
    peaks: dict[str, int | None] = {}

    def write(name: str) -> None:
        peak_bytes_on(args.device)
        written[name] = engines[name].generate(prompt)
        peaks[name] = peak_bytes_on(args.device)

    def prefill(count: int) -> Callable[[], None]:
        config = RolloutConfig(num_generations=count, max_new_tokens=1)
        return lambda: quiet(RolloutEngine(policy, layout, config).generate, prompt)

    def length() -> int:
        return max(map(len, written[args.variants[0]].completion_ids))

    def of_naive() -> float:
        count = length() if args.naive_tokens is None else args.naive_tokens
        return naive(policy, prompt, args.generations, count) * length() / count

    runs: dict[str, Callable[[], float | None]] = {name: partial(write, name) for name in engines}
    if args.naive_tokens != 0:
        runs["naive"] = of_naive
    runs |= {"prefill of G": prefill(args.generations), "prefill of 1": prefill(1)}
    seconds = paired_seconds(runs, args.repeats, args.device)
    tokens, forwards = length(), {name: max(rollout.forwards) for name, rollout in written.items()}

    on_gpu = args.device.startswith("cuda")
    images = tuple(layout.span_length(*size) for size in engines[args.variants[0]].config.image_sizes)
    work = workload(policy.config.shape, prompt=len(prompt), completion=tokens, images=images,
                    span=images[-1], generations=args.generations, dtype=args.dtype, on_gpu=on_gpu)
    bandwidth = copied_bytes_a_second(args.device)
    floor = duration.rollout(work, machine(None, measured={
        "memory_gib": 1, "tflops": 1, "bandwidth_gb": bandwidth / 1e9})).limits["memory bandwidth"]
    found = {"prompt tokens": len(prompt), "new tokens": tokens,
             "prefill of G / of 1": median_ratio(seconds, "prefill of G", "prefill of 1"),
             "bandwidth, GB/s": bandwidth / 1e9, "floor, s": floor,
             "floor, tokens/s": args.generations * tokens / floor,
             "planned, GiB": planned(work)}
    for name in engines:
        median = statistics.median(seconds[name])
        found |= {f"{name}, forwards": forwards[name],
                  f"{name}, tokens/s": args.generations * tokens / median,
                  f"{name}, ms a forward": 1e3 * median / forwards[name], f"{name} / floor": median / floor}
        if peaks[name]:
            found[f"{name}, GiB"] = peaks[name] / GIB
            if name == "int8":
                found["int8 planned, GiB"] = planned(replace(work, int8_caches=True))
        for other in ("naive", "plain", "graphs"):
            if other in seconds and name != other:
                found[f"{name} / {other}"] = median_ratio(seconds, name, other)
    return found | {f"{name}, s": statistics.median(values) for name, values in seconds.items()}


def planned(work: Workload) -> float:
    """GiB of a rollout, weights included."""
    return (memory.base_bytes(work) + max(sum(memory.prefill(work).values()),
                                          sum(memory.rollout(work).values()))) / GIB


def quiet(function: Callable[..., object], *arguments: object) -> None:
    """Call and forget the result."""
    function(*arguments)


def timed(device: str, function: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call on a device."""
    started = time.perf_counter()
    function(*arguments)
    synchronize(device)
    return time.perf_counter() - started


@torch.no_grad()
def naive(policy: PreTrainedModel, prompt: list[int], generations: int, tokens: int) -> float:
    """Seconds of one forward of 2 G rows a token, after the prompt: growing cache, whole head,
    nothing else.
    """
    cache = DynamicCache()
    ids = torch.tensor([prompt] * (2 * generations), device=policy.device)
    policy(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids = ids[:, -1:]
    synchronize(policy.device.type)
    started = time.perf_counter()
    for _ in range(tokens):
        policy(input_ids=ids, past_key_values=cache, use_cache=True)
    synchronize(policy.device.type)
    return time.perf_counter() - started


def growth(policy: PreTrainedModel, path: Path, repeats: int) -> dict[str, float]:
    """Seconds over G, over image sizes at G = 5, and of one token over prompts beside the naive
    loop's; their plot at `path`.
    """
    runs: dict[str, Callable[[], float | None]] = {}
    for name, generations, units in (*((f"G = {count}", count, UNITS) for count in GROUPS),
                                     *((f"{side * CODES_PER_UNIT}^2", 5, side) for side in SIDES)):
        engine, prompt = engine_for(policy, generations, units)
        runs[name] = partial(quiet, engine.generate, prompt)
    seconds = {name: statistics.median(values)
               for name, values in paired_seconds(runs, repeats, policy.device.type).items()}
    tokens = [seconds_a_token(policy, length, repeats) for length in PROMPTS]
    plot(path, list(seconds.values()), tokens)
    figures = {f"{name}, s": value for name, value in seconds.items()}
    for name in tokens[0]:
        figures |= {f"{name}, ms a token after {length}": 1e3 * token[name]
                    for length, token in zip(PROMPTS, tokens, strict=True)}
        figures[f"{name}, ms more a token after 1,000 more"] = \
            1e6 * (tokens[-1][name] - tokens[0][name]) / (PROMPTS[-1] - PROMPTS[0])
    return figures


def seconds_a_token(policy: PreTrainedModel, length: int, repeats: int) -> dict[str, float]:
    """Median seconds of one token after a prompt of `length` tokens at G = 5, of the engine and of
    the naive loop.
    """
    engine, prompt = engine_for(policy, 5, 2, length)
    tokens = max(map(len, engine.generate(prompt).completion_ids))
    first = RolloutEngine(policy, engine.layout, RolloutConfig(num_generations=5, max_new_tokens=1))

    def of_engine() -> float:
        device = policy.device.type
        return timed(device, engine.generate, prompt) - timed(device, first.generate, prompt)  # no prompt

    seconds = paired_seconds({"engine": of_engine, "naive": lambda: naive(policy, prompt, 5, tokens)},
                             repeats, policy.device.type)
    return {"engine": statistics.median(seconds["engine"]) / (tokens - 1),
            "naive": statistics.median(seconds["naive"]) / tokens}


def plot(path: Path, seconds: list[float], tokens: list[dict[str, float]]) -> None:
    """Three panels: seconds over G; over the codes of the final image; milliseconds of one token
    over the prompt.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.plot(GROUPS, seconds[:len(GROUPS)], "o-")
    left.set(xlabel="completions a prompt (G)", ylabel="seconds a rollout", ylim=(0, None), xticks=GROUPS)
    codes = [(side * CODES_PER_UNIT) ** 2 for side in SIDES]
    middle.plot(codes, seconds[len(GROUPS):], "o-")
    middle.set(xlabel="codes of the final image (G = 5)", ylabel="seconds a rollout", ylim=(0, None),
               xticks=codes)
    for name, label in (("engine", "engine"), ("naive", "naive loop")):
        right.plot(PROMPTS, [1e3 * token[name] for token in tokens], "o-", label=label)
    right.set(xlabel="tokens of the prompt (G = 5)", ylabel="milliseconds a new token", ylim=(0, None),
              xticks=PROMPTS)
    right.legend()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
