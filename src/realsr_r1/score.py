"""Measures a model folder by the rewards it earns.

`realsr-r1 score --model DIR --dataset_name DIR --output FILE.json` writes one completion for each
prompt. With the same `--seed` two models get the same prompts and the same noise, so `--compare`
can pair them. Intervals are 95 % bootstrap percentiles over photos, since the prompts of one photo
resemble each other.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from realsr_r1.core.devices import POLICY_DTYPES, pick_device, policy_dtype
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import check_new_file, check_replaced, existing_folder, write_json
from realsr_r1.core.flags import Parser
from realsr_r1.core.import_named import load_module
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Text
from realsr_r1.core.settings import SEEDS, check_ranges
from realsr_r1.measuring.intervals import mean, mean_with_interval, paired_difference
from realsr_r1.reporting.tables import Column, Mean, MeansFile


class ScoreFile(MeansFile):
    """What this command writes, as far as another model's is paired with it."""

    label: Text
    split: Text
    seed: int
    grammar: Text
    sources: list[Text]
    scores: dict[Text, Column]
    monitor: NotRequired[dict[Text, Mean]]
    monitor_scores: NotRequired[dict[Text, Column]]


def main(argv: list[str] | None = None) -> None:
    """Make prompts, completions, rewards, means and intervals."""
    parser = Parser(prog="realsr-r1 score", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder; tiny is the embedded one")
    parser.add_argument("--dataset_name", required=True, help="folder of a prepared dataset")
    parser.add_argument("--split", default="test_crops",
                        help="split to take prompts from (default: test_crops)")
    parser.add_argument("--samples", type=int, default=256, help="prompts, drawn with --seed (default: 256)")
    parser.add_argument("--recipe",
                        help="GRPO recipe whose rollout settings, rewards and experts are used (default: "
                             "GRPO's defaults)")
    parser.add_argument("--monitor_experts", nargs="*", metavar="NAME",
                        help="held-out experts that are scored too, as GRPO's flag of that name (default: "
                             "the recipe's)")
    parser.add_argument("--grammar", choices=["image", "chain", "rows"], default="image",
                        help="what may be written, as in realsr-r1 grpo (default: image)")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of the choice of prompts and of the noise (default: 0)")
    parser.add_argument("--batch_size", type=int, default=4, help="prompts at a time (default: 4)")
    parser.add_argument("--dtype", choices=POLICY_DTYPES,
                        help="type of the policy (default: bfloat16 on CUDA, else float32)")
    parser.add_argument("--label", help="name in tables (default: the folder's)")
    parser.add_argument("--compare", help="JSON of another model with the same prompts and noise, to pair "
                                          "with")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the file of --output although it holds something else")
    args = parser.parse_args(argv)
    check_ranges(args, {"samples": (1, 10**7), "batch_size": (1, 4096), "seed": SEEDS})
    existing_folder(args.model, "--model", "model folder")
    existing_folder(args.dataset_name, "--dataset_name", "dataset folder")
    check_new_file(args.output, "--output", "score.json")
    made_from = {name: value for name, value in vars(args).items()
                 if name not in ("output", "overwrite", "batch_size", "label") and value is not None}
    check_replaced(Path(args.output), made_from, args.overwrite)
    other = read_scores(args.compare) if args.compare else None
    drawn = {"split": args.split, "seed": args.seed, "grammar": args.grammar}
    if other is not None:
        check_pair(other, drawn, args.compare)
    scores, watched, sources = score(args)
    result: dict[str, Any] = {
        "label": args.label or Path(args.model).name, "made_from": made_from, "n": len(sources), **drawn,
        "sources": sources,
        "rewards": {name: mean_with_interval(values, sources) for name, values in scores.items()},
        "per_photo": {photo: {name: mean([value for value, source in zip(values, sources, strict=True)
                                          if source == photo])
                              for name, values in scores.items()} for photo in sorted(set(sources))},
        "scores": scores,
    }
    if watched:
        result["monitor"] = {name: mean_with_interval(values, sources) for name, values in watched.items()}
        result["monitor_scores"] = watched
    if other is not None:
        check_pair(other, {"sources": sources, "rewards": list(scores)}, args.compare)
        known = other["scores"] | other.get("monitor_scores", {})
        result["paired"] = {name: paired_difference(known[name], values, sources)
                            for name, values in {**scores, **watched}.items() if name in known}
    write_json(args.output, result)
    print_table(result, other)


def read_scores(path: str) -> dict[str, Any]:
    """Read what this command wrote. Raises `UserError` for a file of another form, or a cut one."""
    way = "--compare takes the output of realsr-r1 score"
    found = read_json(path, ScoreFile, way)
    means = {**found["rewards"], **found.get("monitor", {})}
    for name, column in {**found["scores"], **found.get("monitor_scores", {})}.items():
        if len(column) != len(found["sources"]) or name not in means:
            raise UserError(f"{path} has {len(column)} scores of {name} for {len(found['sources'])} prompts, "
                            f"or no mean of them; {way}")
    return found


def check_pair(other: Any, mine: Mapping[str, Any], path: str) -> None:
    """Raise `UserError` unless another model's result can be paired with this one.

    It must have the same prompts, noise and rewards. `path`: where it was read from.
    """
    for key, value in mine.items():
        theirs = other.get(key) if isinstance(other, dict) else None
        if (list(theirs) if isinstance(theirs, dict) else theirs) != value:
            raise UserError(f"{path} (--compare) can't be paired: its {key} differs; score both models with "
                            "the same dataset, --split, --samples, --seed, --grammar and --recipe")


def score(args: argparse.Namespace) -> tuple[dict[str, list[float | None]], dict[str, list[float | None]],
                                             list[str]]:
    """Score each prompt's completion.

    Returns reward name -> scores, with the weighted `total`; held-out expert -> scores; and each
    prompt's photo.
    """
    load_module("realsr_r1.training.config")
    from tqdm import tqdm
    from trl import ModelConfig

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.core.settings import parse
    from realsr_r1.data.records import select_records
    from realsr_r1.models import load_policy
    from realsr_r1.restoring.batches import Batches, workers_for
    from realsr_r1.rewards import load_reward_funcs
    from realsr_r1.rewards.registry import load_monitors, required_columns
    from realsr_r1.rollout import RolloutEngine
    from realsr_r1.training.config import ChainGRPOConfig
    from realsr_r1.training.grpo.prompts import (
        LQ_COLUMN,
        dataset_tags,
        encode_prompts,
        needed_columns,
        other_question,
    )
    from realsr_r1.training.grpo.scores import try_own_rewards

    recipe = ["--config", args.recipe] if args.recipe else []
    if args.monitor_experts is not None:
        recipe += ["--monitor_experts", *args.monitor_experts]
    settings, _ = parse((ChainGRPOConfig, ModelConfig), [
        *recipe, "--dataset_name", args.dataset_name, "--output_dir", "unused",
        "--grammar", args.grammar, "--seed", str(args.seed), "--report_to", "none"], "realsr-r1 score")
    device = pick_device()
    processor = ChainProcessor.from_pretrained(args.model, device=device)
    made_with = settings.reward_settings(processor.settings, device,
                                         dataset_tags(args.dataset_name) if settings.tag_precision else ())
    columns = required_columns(settings.reward_funcs, made_with)
    records = select_records(args.dataset_name, args.split, needed_columns(columns), args.samples, args.seed)
    other = other_question(records, processor)
    if other is not None:
        print(f"{args.dataset_name} asks {other!r}; this model is asked what it was trained with, "
              f"{processor.chain.question!r}")
    functions = load_reward_funcs(settings.reward_funcs, made_with)
    try_own_rewards(settings.reward_funcs, functions, processor.chain,
                    {LQ_COLUMN if key == "image" else key: value for key, value in records[0].items()})
    rewards = dict(zip(settings.reward_funcs, functions, strict=True))
    monitors = load_monitors(settings.reward_funcs, made_with)
    weights = settings.reward_weights or [1.0] * len(rewards)
    policy = load_policy(args.model, dtype=args.dtype or policy_dtype(device)).to(device)
    engine = RolloutEngine(policy, processor, settings.rollout_config(num_generations=1))
    scores: dict[str, list[float | None]] = {name: [] for name in [*rewards, "total"]}
    watched: dict[str, list[float | None]] = {name: [] for name in monitors}
    # Each core of a CPU writes a batch of its own, where the policy is small.
    workers = workers_for(policy, len(records))
    batches = Batches(args.batch_size * workers, workers)

    def write(rows: Sequence[int], check: Callable[[], None]) -> list[list[int]]:
        check()
        batch = records[rows[0]:rows[-1] + 1]
        prompts = encode_prompts({**batch, "problem": [processor.chain.question] * len(rows)}, processor)
        return engine.generate(prompts["prompt"], first_row=rows[0]).completion_ids

    written = iter(tqdm(batches.run(range(len(records)), 1, write), total=len(records), unit="prompt",
                        desc=f"scoring {Path(args.model).name}"))
    for start in range(0, len(records), args.batch_size):
        batch = records[start:start + args.batch_size]
        texts, images = processor.decode_batch(list(itertools.islice(written, args.batch_size)))
        truth = {LQ_COLUMN if key == "image" else key: batch[key] for key in batch}
        for into, judges in ((scores, rewards), (watched, monitors)):
            for name, judge in judges.items():
                into[name] += judge(completions=texts, images=images, **truth)
    scores["total"] = [sum(weight * (scores[name][row] or 0.0)
                           for name, weight in zip(rewards, weights, strict=True))
                       for row in range(len(records))]
    sources = list(records["source"]) if "source" in records.column_names else ["all"] * len(records)
    return scores, watched, sources


def print_table(result: Mapping[str, Any], other: Mapping[str, Any] | None) -> None:
    """Print the means, and the other model's with the paired differences if there are any."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['n']} prompts of {result['split']}, grammar {result['grammar']}, "
                        f"seed {result['seed']}")
    table.add_column("reward")
    for label in [other["label"], result["label"], "difference",
                  "95 % interval"] if other else [result["label"]]:
        table.add_column(label, justify="right", overflow="fold")
    for kind, title in (("rewards", "{}"), ("monitor", "monitor {}")):
        for name, entry in result.get(kind, {}).items():
            cells = [_number(entry["mean"])]
            if other and name in result["paired"]:
                paired = result["paired"][name]
                cells = [_number(other[kind][name]["mean"]), *cells,
                         _number(paired["difference"], sign=True),
                         " to ".join(_number(limit, sign=True) for limit in paired["ci95"])
                         if paired["ci95"] else "-"]
            table.add_row(title.format(name), *(["-"] if other and len(cells) == 1 else []), *cells)
    Console().print(table)


def _number(value: float | None, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


if __name__ == "__main__":
    run(main)
