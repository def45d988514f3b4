"""How often a model names the degradations of photos it never saw, beside their commonest answer.

    python scripts/tools/name_degradations.py --model assets/tiny --dataset_name DATASET [--split test]

The model writes the likeliest words, as `restore` has them by default. The commonest answer has, for
each item, the label that is most frequent in the training split. Prints a Markdown table: the share
of items named right, and the difference with its 95 % interval over photos.
"""

from __future__ import annotations

import argparse
from collections import Counter

from datasets import Dataset
from tqdm import tqdm

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.core.errors import UserError, run
from realsr_r1.data.records import select_records
from realsr_r1.measuring.intervals import paired_difference
from realsr_r1.models import load_policy
from realsr_r1.rollout import RolloutConfig, RolloutEngine
from realsr_r1.training.grpo.prompts import encode_prompts

ITEMS = ("blur", "resize", "noise", "compression", "second resize")
BATCH = 60


def main(argv: list[str] | None = None) -> None:
    """Write, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="assets/tiny")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    needs = {"naming degradations": ["image", "degradation", "source"]}
    training = select_records(args.dataset_name, "train", needs)
    records = select_records(args.dataset_name, args.split, needs)
    truth = list(records["degradation"])
    if not truth:
        raise UserError(f"{args.dataset_name} has no records in its split {args.split}")
    commonest = [Counter(column).most_common(1)[0][0]
                 for column in zip(*training["degradation"], strict=True)]
    named = written(args.model, records)
    right = {who: [[float(given == label) for given, label in zip(answer, wanted, strict=True)]
                   for answer, wanted in zip(answers, truth, strict=True)]
             for who, answers in (("commonest", [commonest] * len(truth)), ("model", named))}
    print(f"{len(truth)} crops of {len(set(records['source']))} photos\n")
    print("| item | commonest answer | the model | difference |\n|---|---|---|---|")
    for place, item in [*enumerate(ITEMS), (None, "**all**")]:
        before, after = ([sum(row) / len(row) if place is None else row[place] for row in right[who]]
                         for who in ("commonest", "model"))
        found = paired_difference(before, after, records["source"])
        low, high = found["ci95"]
        print(f"| {item} | {sum(before) / len(before):.3f} | {sum(after) / len(after):.3f} "
              f"| {found['difference']:+.3f} ({low:+.3f} to {high:+.3f}) |")


def written(model: str, records: Dataset) -> list[list[str]]:
    """What the model names for each record, as many items as there are."""
    processor, policy = ChainProcessor.from_pretrained(model), load_policy(model)
    # Nothing but the first section is asked for; the grammar of whole chains wouldn't end there.
    engine = RolloutEngine(policy, processor, RolloutConfig(num_generations=1, grammar="image", text_top_k=1,
                                                            max_new_tokens=40, guidance_scale=1.0))
    answers = []
    for start in tqdm(range(0, len(records), BATCH), desc="crops"):
        batch = records[start:start + BATCH]
        prompts = encode_prompts({**batch, "problem": [processor.chain.question] * len(batch["image"])},
                                 processor)["prompt"]
        for ids in engine.generate(prompts).completion_ids:
            text = processor.decode_text(ids).partition("</degradation>")[0].partition("<degradation>")[2]
            items = [item.strip() for item in text.split(",")]
            answers.append((items + [""] * len(ITEMS))[:len(ITEMS)])
    return answers


if __name__ == "__main__":
    run(main)
