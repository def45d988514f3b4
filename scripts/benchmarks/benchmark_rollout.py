"""Time of a rollout beside the naive loop: one forward of 2 G rows a token with a growing cache and
the whole head.

    python scripts/benchmarks/benchmark_rollout.py --preset small [--json FILE]
    python scripts/benchmarks/benchmark_rollout.py --preset large
    python scripts/benchmarks/benchmark_rollout.py --preset small --growth figs/rollout_growth.png

Small: hidden 256, 4 layers; large: hidden 1024, 8 layers.
Both in one process, in turn, float32 on CPU with 2 threads (on CUDA where there is one); ratios are
medians over turns. The engine does all of a rollout; of the naive loop only its forwards are timed,
without the prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarking import CODES_PER_UNIT, chain_layout, median_ratio, paired_seconds, prompt_of, random_policy
from transformers import DynamicCache, PreTrainedModel

from realsr_r1.chain.spec import image_sizes
from realsr_r1.rollout import RolloutConfig, RolloutEngine

PRESETS = {"small": {"hidden": 256, "layers": 4, "heads": 4, "intermediate": 688},
           "large": {"hidden": 1024, "layers": 8, "heads": 8, "intermediate": 2752}}
PROMPT, BODY = 338, 5  # tokens of the prompt; of a text section's body
UNITS = 4  # grid units of the final image: 16 x 16 codes
# Of --growth: G, final images, prompts
GROUPS, SIDES, PROMPTS = (1, 2, 5, 10, 20), (2, 4, 6, 8), (338, 1338, 2338, 4338)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    for name in PRESETS["small"]:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--generations", type=int, default=5, help="G (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cuda_graphs", action="store_true", help="the engine's steps as CUDA graphs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--growth", type=Path, metavar="PNG", help="plot time over G, image sizes and "
                                                                   "prompts instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = {name: getattr(args, name) or value for name, value in PRESETS[args.preset].items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = random_policy(shape["hidden"], shape["layers"], shape["heads"], shape["intermediate"]).to(device)
    if args.growth:
        figures = growth(policy, args.growth, args.repeats, args.cuda_graphs)
    else:
        figures = {"preset": args.preset, **shape, "generations": args.generations, "threads": args.threads,
                   "cuda_graphs": args.cuda_graphs,
                   **against_naive(policy, args.generations, args.repeats, args.cuda_graphs)}
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def engine_for(policy: PreTrainedModel, generations: int, units: int = UNITS, cuda_graphs: bool = False,
               length: int | None = None) -> tuple[RolloutEngine, list[int]]:
    """An engine that writes whole chains with a final image of `units` x `units`, and a prompt with
    such an image.

    `length`: tokens of the prompt (default: `PROMPT` where the image is of `UNITS`).
    """
    layout = chain_layout()
    sizes = image_sizes(layout.chain_form.shares, units, units)
    images = sum(layout.span_length(*size) for size in sizes)
    tags = sum(len(section.open_ids) + len(section.close_ids) for section in layout.chain_form.sections)
    config = RolloutConfig(num_generations=generations, max_new_tokens=images + tags + 4 * BODY + 1,
                           grammar="chain", image_sizes=sizes, max_text_tokens=BODY, guidance_scale=0.8,
                           cuda_graphs=cuda_graphs)
    usual = PROMPT + layout.span_length(units, units) - layout.span_length(UNITS, UNITS)
    return RolloutEngine(policy, layout, config), prompt_of(layout, units, length or usual)


def against_naive(policy: PreTrainedModel, generations: int, repeats: int,
                  cuda_graphs: bool) -> dict[str, float]:
    """Seconds and ratios of the engine, of prefilling, and of the naive loop over the same number
    of tokens.
    """
    engine, prompt = engine_for(policy, generations, cuda_graphs=cuda_graphs)
    tokens = max(map(len, engine.generate(prompt).completion_ids))

    def prefill(count: int) -> Callable[[], None]:
        config = RolloutConfig(num_generations=count, max_new_tokens=1)
        return lambda: quiet(RolloutEngine(policy, engine.layout, config).generate, prompt)

    seconds = paired_seconds({
        "engine": lambda: quiet(engine.generate, prompt),
        "naive": lambda: naive(policy, prompt, generations, tokens),
        "prefill of G": prefill(generations), "prefill of 1": prefill(1)}, repeats)
    return {"new tokens": tokens, "engine / naive": median_ratio(seconds, "engine", "naive"),
            "prefill of G / of 1": median_ratio(seconds, "prefill of G", "prefill of 1"),
            **{f"{name}, s": statistics.median(values) for name, values in seconds.items()}}


def quiet(function: Callable[..., object], *arguments: object) -> None:
    """Call and forget the result."""
    function(*arguments)


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
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
    started = time.perf_counter()
    for _ in range(tokens):
        policy(input_ids=ids, past_key_values=cache, use_cache=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def growth(policy: PreTrainedModel, path: Path, repeats: int, cuda_graphs: bool) -> dict[str, float]:
    """Seconds over G, over image sizes at G = 5, and of one token over prompts beside the naive
    loop's; their plot at `path`.
    """
    runs: dict[str, Callable[[], float | None]] = {}
    for name, generations, units in (*((f"G = {count}", count, UNITS) for count in GROUPS),
                                     *((f"{side * CODES_PER_UNIT}^2", 5, side) for side in SIDES)):
        engine, prompt = engine_for(policy, generations, units, cuda_graphs)
        runs[name] = partial(quiet, engine.generate, prompt)
    seconds = {name: statistics.median(values) for name, values in paired_seconds(runs, repeats).items()}
    tokens = [seconds_a_token(policy, length, repeats, cuda_graphs) for length in PROMPTS]
    plot(path, list(seconds.values()), tokens)
    figures = {f"{name}, s": value for name, value in seconds.items()}
    for name in tokens[0]:
        figures |= {f"{name}, ms a token after {length}": 1e3 * token[name]
                    for length, token in zip(PROMPTS, tokens, strict=True)}
        figures[f"{name}, ms more a token after 1,000 more"] = \
            1e6 * (tokens[-1][name] - tokens[0][name]) / (PROMPTS[-1] - PROMPTS[0])
    return figures


def seconds_a_token(policy: PreTrainedModel, length: int, repeats: int,
                    cuda_graphs: bool) -> dict[str, float]:
    """Median seconds of one token after a prompt of `length` tokens at G = 5, of the engine and of
    the naive loop.
    """
    engine, prompt = engine_for(policy, 5, 2, cuda_graphs, length)
    tokens = max(map(len, engine.generate(prompt).completion_ids))
    first = RolloutEngine(policy, engine.layout, RolloutConfig(num_generations=5, max_new_tokens=1))

    def of_engine() -> float:
        return timed(engine.generate, prompt) - timed(first.generate, prompt)  # without the prompt

    seconds = paired_seconds({"engine": of_engine, "naive": lambda: naive(policy, prompt, 5, tokens)},
                             repeats)
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
