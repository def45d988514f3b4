"""Tries on purpose what goes wrong, and writes down how each case ended.

    python scripts/tools/fault_campaign.py inputs --each 40 --seed 0 --page docs/reliability.md

`inputs`: bad input to every command by generator (scripts/tools/faults/inputs.py): no traceback,
nothing over 20 s, exit code 2, one line, nothing half-written. A short form runs in the suite
(tests/faults). Two more take flags of their own (`fault_campaign.py kills --help`): `kills`, two-process
runs that are killed and signalled (scripts/tools/faults/kills.py), and `soak`, a long run whose memory
must not grow (scripts/tools/faults/soak.py).
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults import forks, inputs, kills, soak  # noqa: E402

# What the commands import, once for all children.
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "matplotlib.figure", "skimage", "scipy.fft",
         "rich.table", "realsr_r1.grpo", "realsr_r1.sft", "realsr_r1.create_json", "realsr_r1.restoring",
         "realsr_r1.training.config", "realsr_r1.training.grpo.trainer", "realsr_r1.reporting.page",
         "realsr_r1.planning.advice", "realsr_r1.measuring.metrics", "realsr_r1.data.records")


def input_results(args: argparse.Namespace) -> Iterator[forks.Result]:
    """Yield how each case of bad input ended."""
    from realsr_r1.cli import main

    place = args.work / "workplace"
    # In a process of its own: what has run in this one would be copied into every child.
    subprocess.run([sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import "
                    "Path; from faults import workplace; workplace.make(Path(sys.argv[2]))",
                    str(Path(__file__).parent), str(place)], check=True, stdout=subprocess.DEVNULL)
    for name in HEAVY:
        __import__(name)
    folder = args.work / "cases"
    shutil.rmtree(folder, ignore_errors=True)
    for case in inputs.cases(place, folder, args.each, args.seed):
        if args.only and args.only not in case.folder.name:
            shutil.rmtree(case.folder)
            continue
        result = forks.run(case, main)
        if not result.is_fault and not args.only:
            _remove(case.folder)
        yield result


KINDS = {"inputs": input_results}


def main() -> int:
    """Run one kind of faults; returns 1 where a case ended badly."""
    if sys.argv[1:2] in (["kills"], ["soak"]):
        return {"kills": kills, "soak": soak}[sys.argv[1]].main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--each", type=int, default=40, help="cases of each command (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases that are drawn (default: 0)")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "faults",
                        help="folder for the workplace and the cases (default: outputs/faults)")
    parser.add_argument("--only", help="run only the case of this number (NN-NNN), and keep its folder")
    parser.add_argument("--page", type=Path, help="write the table between its marks on this page")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", WANDB_MODE="offline",
                      TOKENIZERS_PARALLELISM="false")
    args.work = args.work.absolute()
    found = []
    try:
        for result in KINDS[args.kind](args):
            found.append(result)
            if result.is_fault or args.only:
                last = " ".join(result.said.strip().splitlines()[-1:])[:200]
                print(f"{result.case.folder.name} {result.case.area}: {result.case.what}: {result.outcome} "
                      f"({result.seconds:.1f} s) {last!a}", flush=True)
    except KeyboardInterrupt:
        print(f"cut short after {len(found)} cases")
    text = table(found)
    print(text)
    if args.page:
        write_between(args.page, args.kind, text)
    return int(any(result.is_fault for result in found))


def table(found: Iterable[forks.Result]) -> str:
    """A line for each area: cases, how many were refused, accepted, and ended badly, and the slowest."""
    areas: dict[str, list[forks.Result]] = defaultdict(list)
    for result in found:
        areas[result.case.area].append(result)
    lines = ["| command | cases | refused (exit code 2, one line) | accepted | faults | slowest, s |",
             "|---|--:|--:|--:|--:|--:|"]
    total: Counter[str] = Counter()
    for area, results in areas.items():
        counts = Counter("faults" if result.is_fault else result.outcome for result in results)
        total.update(counts)
        lines.append(_line(f"`{area}`", counts, max(result.seconds for result in results)))
    slowest = max((result.seconds for results in areas.values() for result in results), default=0.0)
    return "\n".join([*lines, _line("all", total, slowest)])


def _line(name: str, counts: Counter[str], slowest: float) -> str:
    return (f"| {name} | {sum(counts.values())} | {counts[forks.REFUSED]} | {counts[forks.ACCEPTED]} | "
            f"{counts['faults']} | {slowest:.1f} |")


def write_between(page: Path, kind: str, text: str) -> None:
    """Write a table and its date between the marks `<!-- KIND: begin -->` and `end` of a page."""
    begin, end = f"<!-- {kind}: begin -->", f"<!-- {kind}: end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    words = " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv)
    date = f"Run on {datetime.date.today():%d %B %Y}: `python {words}`"
    page.write_text(f"{head}{begin}\n\n{date}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def _remove(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
