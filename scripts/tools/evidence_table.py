"""Print the Markdown tables of an evidence run.

    python scripts/tools/evidence_table.py outputs/evidence
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realsr_r1.core.files import read_json

Pair = tuple[dict[str, Any], dict[str, Any]]  # what `realsr-r1 score` wrote before and after training
SPLITS = {"test_crops": "crops of the training photos that no training crop touches",
          "test": "photos never used"}


def main(folder: str) -> None:
    """For each split a row a seed, with intervals; for unseen photos also a row a photo."""
    for split, meaning in SPLITS.items():
        pairs = read_pairs(Path(folder), split)
        if not pairs:
            continue
        after = pairs[0][1]
        print(f"\n**{split}** ({meaning}), {after['n']} pairs a seed, grammar `{after['grammar']}`: cold "
              "start → after GRPO (difference, 95 % interval)\n")
        print_table("seed", pairs, {str(pair[1]["seed"]): with_interval(pair) for pair in pairs})
        if split == "test":
            print("\nBy photo:\n")
            print_table("photo, seed", pairs, {f"{photo}, {pair[1]['seed']}": of_photo(pair, photo)
                                               for photo in after["per_photo"] for pair in pairs})


def read_pairs(folder: Path, split: str) -> list[Pair]:
    """(before, after) of every seed."""
    return [(read_json(path.with_name(path.name.replace("after", "before", 1))), read_json(path))
            for path in sorted(folder.glob(f"after-{split}-*.json"))]


def with_interval(pair: Pair) -> Callable[[str], str]:
    """Reward -> its cell over all prompts."""
    before, after = pair

    def cell(name: str) -> str:
        low, high = after["paired"][name]["ci95"]
        return (f"{before['rewards'][name]['mean']:.3f} → {after['rewards'][name]['mean']:.3f} "
                f"({after['paired'][name]['difference']:+.3f}, {low:+.3f} to {high:+.3f})")
    return cell


def of_photo(pair: Pair, photo: str) -> Callable[[str], str]:
    """Reward -> its cell over one photo's prompts."""
    before, after = (side["per_photo"][photo] for side in pair)
    return lambda name: f"{before[name]:.3f} → {after[name]:.3f} ({after[name] - before[name]:+.3f})"


def print_table(corner: str, pairs: list[Pair], rows: dict[str, Callable[[str], str]]) -> None:
    """A Markdown table with a column a reward."""
    names = list(pairs[0][1]["rewards"])
    print(f"| {corner} | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for label, cell in rows.items():
        print(f"| {label} | {' | '.join(map(cell, names))} |")


if __name__ == "__main__":
    main(sys.argv[1])
