"""Print the Markdown table of an evidence run: python scripts/evidence_table.py outputs/evidence."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: str) -> None:
    """One block a split, a row a seed: every reward before and after, and the paired difference with its interval."""
    for split in ("test_crops", "test"):
        files = sorted(Path(folder).glob(f"after-{split}-*.json"))
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if not rows:
            continue
        print(f"\n**{split}**, {rows[0]['n']} prompts, grammar {rows[0]['grammar']}: "
              "cold start → after GRPO (difference, 95 % interval)\n")
        names = list(rows[0]["rewards"])
        print("| seed | " + " | ".join(names) + " |")
        print("|---" * (len(names) + 1) + "|")
        for after in rows:
            cells = []
            for name in names:
                paired, mean = after["paired"][name], after["rewards"][name]["mean"]
                low, high = paired["ci95"]
                difference = paired["difference"]
                cells.append(f"{mean - difference:.3f} → {mean:.3f} ({difference:+.3f}, {low:+.3f} to {high:+.3f})")
            print(f"| {after['seed']} | " + " | ".join(cells) + " |")
        if split == "test":
            print("\nTotal by photo: " + "; ".join(
                f"{photo} " + ", ".join(f"{after['per_photo'][photo]['total']:.3f}" for after in rows)
                for photo in rows[0]["per_photo"]))


if __name__ == "__main__":
    main(sys.argv[1])
