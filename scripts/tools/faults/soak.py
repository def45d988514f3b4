"""Watches a long training run: its memory, open files and threads must not grow.

    scripts/tools/fault_campaign.py soak --run FOLDER --steps 500 bash scripts/train_grpo.sh ...

The command is started as it is; it trains into FOLDER for that many steps and logs often. Each of
its processes that trains (`realsr_r1` in its command line, no launcher) is looked at every few
seconds. Compared are medians: of the samples taken around a fifth of the steps, and of those of the
last twentieth. What must hold: resident memory grows by at most 5 %, and open files and threads stay
as many. The samples go to FOLDER.soak.jsonl, and a table to stdout; the exit code is 1 when
something didn't hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

GROWTH = 1.05  # of resident memory, at most
SECONDS = 3.0  # between two looks
ENTRIES = ("grpo.py", "sft.py", "realsr_r1.grpo", "realsr_r1.sft")


def main(argv: list[str]) -> int:
    """Run the command and watch it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fault_campaign.py soak", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="the command's --output_dir, a new folder")
    parser.add_argument("--steps", type=int, required=True, help="steps that the command trains for")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if (args.run / "log_history.jsonl").exists():
        parser.error(f"{args.run} holds a run; name a new folder")
    began, samples = time.monotonic(), []
    launched = subprocess.Popen(args.command)
    with open(f"{args.run.absolute()}.soak.jsonl", "w", encoding="utf-8") as file:
        while launched.poll() is None:
            step = last_step(args.run)
            for number, process in enumerate(trainers(launched.pid)):
                try:
                    sample = {"step": step, "process": number, "rss": process.memory_info().rss,
                              "files": process.num_fds(), "threads": process.num_threads()}
                except psutil.NoSuchProcess:
                    continue
                samples.append(sample)
                file.write(json.dumps(sample) + "\n")
            time.sleep(SECONDS)
    if launched.returncode or last_step(args.run) != args.steps:
        print(f"the command ended with exit code {launched.returncode} at step {last_step(args.run)}")
        return 1
    print(f"{args.steps} steps in {(time.monotonic() - began) / 60:.0f} minutes\n")
    return 0 if table(samples, args.steps) else 1


def trainers(pid: int) -> list[psutil.Process]:
    """The processes below `pid` that train, in the order in which they were started."""
    found = []
    try:
        everyone = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in everyone:
            words = process.cmdline()
            if "torchrun.py" not in " ".join(words) and any(word.endswith(ENTRIES) for word in words[:4]):
                found.append(process)
    except psutil.NoSuchProcess:
        pass
    return [one for one in found if one.ppid() not in {other.pid for other in found}]  # no data workers


def last_step(run: Path) -> int:
    """The last step in a run's log, 0 where there is none yet."""
    log = run / "log_history.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):  # a line that is being written
            continue
    return 0


def table(samples: list[dict[str, int]], steps: int) -> bool:
    """Print what each process held at a fifth and at the end; returns whether it held."""
    print("| process | at | resident, MiB | open files | threads |\n|---|---|--:|--:|--:|")
    held = True
    for number in sorted({sample["process"] for sample in samples}):
        own = [sample for sample in samples if sample["process"] == number]
        parts = {"a fifth": [one for one in own if 0.17 <= one["step"] / steps <= 0.23],
                 "the end": [one for one in own if 0.95 <= one["step"] / steps < 1]}
        medians = [{what: statistics.median(one[what] for one in part)
                    for what in ("rss", "files", "threads")} for part in parts.values()]
        for at, values in zip(parts, medians, strict=True):
            print(f"| {number} | {at} | {values['rss'] / 2**20:.0f} | {values['files']:.0f} | "
                  f"{values['threads']:.0f} |")
        early, late = medians
        held &= late["rss"] <= GROWTH * early["rss"] and late["files"] == early["files"]
        held &= late["threads"] == early["threads"]
    print("held" if held else "didn't hold", file=sys.stderr)
    return held
