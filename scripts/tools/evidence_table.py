"""Write the tables of an evidence run into a page, between its marks, and draw its figure.

    python scripts/tools/evidence_table.py outputs/evidence --page docs/results.md --figure figs/evidence.png

It reads what `scripts/evidence.sh` left: before-SPLIT-SEED.json and after-SPLIT-CASE-SEED.json of
`realsr-r1 score`. A figure is the difference after - before on the same prompts and noise, with its
95 % interval over photos.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file
from realsr_r1.core.json_yaml import read_json
from realsr_r1.measuring.intervals import paired_difference
from realsr_r1.score import ScoreFile

SPLITS = {"test": "Photos never used",
          "test_crops": "Crops of the training photos that no training crop touches"}
BEGIN, END = "<!-- evidence: written by scripts/tools/evidence_table.py -->", "<!-- end of evidence -->"
COLOURS = {"section": "#0b6e67", "sequence": "#c2571a"}  # of the figure; runs without a reward are grey


@dataclass(frozen=True)
class Run:
    """A training run on one split: what `score` wrote before and after it."""

    case: str
    seed: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def scores(self, name: str) -> tuple[Sequence[float | None], Sequence[float | None]]:
        """A reward's or a held-out expert's scores before and after."""
        return tuple(side["scores"].get(name) or side["monitor_scores"][name]
                     for side in (self.before, self.after))

    def difference(self, name: str) -> dict[str, Any]:
        """After - before with its interval."""
        return paired_difference(*self.scores(name), self.after["sources"])


def main(argv: list[str] | None = None) -> None:
    """Read runs, write tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, required=True, help="Markdown page with the marks")
    parser.add_argument("--figure", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    runs = {split: read_runs(args.folder, split) for split in SPLITS}
    if not runs["test"]:
        raise UserError(f"{args.folder} has no after-test-*.json; run scripts/evidence.sh first")
    text = "\n\n".join(tables(split, found) for split, found in runs.items() if found)
    page = args.page.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise UserError(f"{args.page} (--page) lacks the lines {BEGIN} and {END}")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    with atomic_file(args.page) as partial:
        partial.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    draw(runs["test"], args.figure)
    print(text)


def read_runs(folder: Path, split: str) -> list[Run]:
    """All runs of a split: section and sequence first, then those without a reward."""
    found = []
    for path in folder.glob(f"after-{split}-*.json"):
        case, seed = re.fullmatch(rf"after-{split}-(\w+)-(\d+)", path.stem).groups()
        files = folder / f"before-{split}-{seed}.json", path
        found.append(Run(case, int(seed), *(read_json(file, ScoreFile) for file in files)))
    return sorted(found, key=lambda one: (one.case.startswith("without"), one.case, one.seed))


def tables(split: str, runs: Sequence[Run]) -> str:
    """The tables of a split: rewards, held-out experts, and section beside sequence."""
    first = runs[0].after
    parts = [f"### {SPLITS[split]} (`{split}`)\n\n{first['n']} prompts of {len(set(first['sources']))} "
             "photos a seed. After - before on the same prompts and noise; the 95 % interval is over photos."]
    for title, names in (("credit or what is left out, seed", list(first["scores"])),
                         ("held-out experts", list(first.get("monitor_scores", {})))):
        if names:
            parts.append(table(title, names, {f"{one.case.replace('_', ' ')}, {one.seed}": [
                cell(one.difference(name)) for name in names] for one in runs}))
    by_key = {(one.case, one.seed): one for one in runs}
    both = [seed for case, seed in by_key if case == "section" and ("sequence", seed) in by_key]
    if both:
        names = list(first["scores"])
        rows = {str(seed): [cell(gained_more(by_key["section", seed], by_key["sequence", seed], name))
                            for name in names] for seed in both}
        parts.append("How much more `section` gained than `sequence`, prompt by prompt:\n\n"
                     + table("seed", names, rows))
    return "\n\n".join(parts)


def gained_more(one: Run, other: Run, name: str) -> dict[str, Any]:
    """How much more `one` gained than `other` in a reward, with its interval; both have the same prompts."""
    return paired_difference(other.after["scores"][name], one.after["scores"][name], one.after["sources"])


def table(corner: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {corner} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(lines + [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()])


def cell(found: Mapping[str, Any]) -> str:
    """A difference with its interval, in bold where the interval leaves out zero."""
    low, high = found["ci95"]
    text = f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw generation and total on photos never used: a point a run, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 0.32 * len(runs)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = [f"{one.case.replace('_', ' ')}, seed {one.seed}" for one in runs]
    for ax, name in zip(axes, ("generation", "total"), strict=True):
        ax.axvline(0, color="#999", linewidth=1)
        for place, one in enumerate(runs):
            found = one.difference(name)
            low, high = found["ci95"]
            colour = COLOURS.get(one.case, "#777")
            ax.plot([low, high], [place, place], color=colour, linewidth=2)
            ax.plot([found["difference"]], [place], "o", color=colour)
        ax.set_title(f"{name}: after - before GRPO", fontsize=11)
        ax.set_yticks(range(len(runs)), labels)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


if __name__ == "__main__":
    run(main)
