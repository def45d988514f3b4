"""Kills and signals runs at random moments, starts them again, and says what didn't hold.

    scripts/tools/fault_campaign.py kills --model DIR --dataset DIR --output DIR --trials 50

A trial is a GRPO run of two processes under ZeRO-3. It is hit once or twice, at moments drawn over
the length of the run that nobody hits, and then started until it ends. What must hold: no rank
outlives its launcher by 5 seconds; a signal gives its exit code and one line; the run ends at its
number of steps with the weights of the untouched run, bit for bit; nothing but the wanted
checkpoints is left. A line a trial goes to OUTPUT/trials.jsonl, and a summary to stdout; the exit
code is 1 when something didn't hold. A campaign that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
STEPS, SAVE_STEPS, LIMIT = 6, 2, 2
OUTLIVE = 5.0  # seconds
STARTS = 5  # of a trial, at most
HITS = ("kill launcher", "kill all ranks", "kill rank 0", "kill rank 1", "SIGTERM", "SIGINT", "SIGUSR1")
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143}
FLAGS = ["--reward_funcs", "format", "degradation", "understanding", "--grammar", "chain",
         "--max_text_tokens", "6", "--max_completion_length", "400", "--num_generations", "3",
         "--per_device_train_batch_size", "1", "--loss_batch_size", "3", "--sample_steps", "0",
         "--learning_rate", "1e-3", "--report_to", "none", "--max_steps", str(STEPS), "--save_steps",
         str(SAVE_STEPS), "--save_total_limit", str(LIMIT), "--logging_steps", "1", "--disable_tqdm", "true"]


class Trial:
    """A run that is hit, and what didn't hold."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.faults, self.landed = args, folder, [], []
        self.output, self.log = folder / "run", folder / "log.txt"
        folder.mkdir(parents=True)

    def start(self) -> subprocess.Popen:
        """Start the run, its output added to the log."""
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                ["bash", "scripts/train_grpo.sh", *FLAGS], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "NPROC": "2", "RECIPE": "configs/recipes/tiny_grpo.yaml",
                     "MODEL": self.args.model, "DATASET": self.args.dataset, "OUTPUT": str(self.output),
                     "MASTER_PORT": "auto", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"),
                     "OMP_NUM_THREADS": "1"})

    def hit(self, kind: str, after: float) -> None:
        """Start the run, hit it after some seconds, and see how it ends.

        What had ended by then isn't hit.
        """
        before = self.log.stat().st_size if self.log.exists() else 0
        launcher = self.start()
        try:
            launcher.wait(after)
            return
        except subprocess.TimeoutExpired:
            pass
        process = psutil.Process(launcher.pid)
        ranks = process.children()
        is_hit = False
        for target in [process] if kind in CODES or kind == "kill launcher" else [
                rank for number, rank in enumerate(ranks)
                if kind in ("kill all ranks", f"kill rank {number}")]:
            is_hit = sent(target, getattr(signal, kind if kind in CODES else "SIGKILL")) or is_hit
        if is_hit:
            self.landed.append(kind)
        try:
            code = launcher.wait(120)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{kind}: still running after 120 s")
            launcher.kill()
            return
        _, alive = psutil.wait_procs(ranks, OUTLIVE)
        self.faults += [f"{kind}: rank {rank.pid} outlived the launcher" for rank in alive]
        said = [line for line in self.log.read_bytes()[before:].decode(errors="replace").splitlines()
                if "ended by" in line or "was killed by" in line]
        if is_hit and kind in CODES and (code, len(said)) != (CODES[kind], 1):
            self.faults.append(f"{kind}: exit code {code}, {len(said)} lines")
        if is_hit and kind.startswith(("kill rank", "kill all")) and (code == 0 or len(said) != 1):
            self.faults.append(f"{kind}: exit code {code}, {len(said)} lines")
        if "Traceback" in self.log.read_bytes()[before:].decode(errors="replace"):
            self.faults.append(f"{kind}: a traceback")

    def finish(self) -> None:
        """Start the run until it ends by itself."""
        for _ in range(STARTS):
            if self.start().wait(600) == 0:
                return
        self.faults.append("it never ended")

    def compare(self, whole: Path) -> None:
        """See whether it ended as the untouched run did."""
        if not (self.output / "model.safetensors").is_file():
            self.faults.append("no model folder")
        elif (self.output / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes():
            self.faults.append("other weights than the untouched run")
        # A signal saves at a step of its own, so the checkpoint before the last may be another one.
        checkpoints = {path.name for path in self.output.glob("checkpoint-*")}
        names, wanted = ({path.name for path in run.iterdir() if not path.name.startswith("checkpoint-")}
                         for run in (self.output, whole))
        if names != wanted:
            self.faults.append(f"left behind or missing: {sorted(names ^ wanted)}")
        if len(checkpoints) != LIMIT or f"checkpoint-{STEPS}" not in checkpoints:
            self.faults.append(f"checkpoints {sorted(checkpoints)}")
        log = self.output / "log_history.jsonl"
        steps = [line["step"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
        if steps != list(range(1, STEPS + 1)):
            self.faults.append(f"logged steps {steps}")


def sent(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal to a process that runs; returns whether it did.

    One that has ended stays listed until its parent has asked for its code.
    """
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def main(argv: list[str]) -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fault_campaign.py kills", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder to train")
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--output", required=True, help="folder of the campaign")
    parser.add_argument("--trials", type=int, default=50, help="runs to hit (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds (default: 0)")
    parser.add_argument("--earliest", type=float, default=0.1, metavar="SHARE",
                        help="of a run's length, before which it isn't hit (default: 0.1; a run trains and "
                             "saves in its last quarter)")
    parser.add_argument("--kinds", nargs="+", choices=HITS, default=list(HITS), help="(default: all)")
    args = parser.parse_args(argv)
    args.model, args.dataset = str(Path(args.model).absolute()), str(Path(args.dataset).absolute())
    output, draw = Path(args.output).absolute(), random.Random(args.seed)
    lines, untouched = output / "trials.jsonl", output / "untouched.json"
    if not untouched.exists():
        shutil.rmtree(output / "whole", ignore_errors=True)
        whole, began = Trial(args, output / "whole"), time.monotonic()
        whole.finish()
        untouched.write_text(json.dumps({"seconds": time.monotonic() - began}), encoding="utf-8")
    length = json.loads(untouched.read_text(encoding="utf-8"))["seconds"]
    done = len(lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else 0
    for number in range(args.trials):
        kinds = [args.kinds[(number + index) % len(args.kinds)] for index in range(1 + number % 2)]
        hits = [(kind, draw.uniform(args.earliest, 1.02) * length) for kind in kinds]
        if number < done:
            continue
        shutil.rmtree(output / f"trial-{number}", ignore_errors=True)
        trial = Trial(args, output / f"trial-{number}")
        for kind, after in hits:
            trial.hit(kind, after)
        trial.finish()
        trial.compare(output / "whole" / "run")
        with open(lines, "a", encoding="utf-8") as file:
            file.write(json.dumps({"trial": number, "hits": hits, "landed": trial.landed,
                                   "faults": trial.faults}) + "\n")
        print(f"trial {number}: {', '.join(f'{kind} at {after:.1f} s' for kind, after in hits)}: "
              f"{'; '.join(trial.faults) or 'held'}", flush=True)
        if not trial.faults:
            shutil.rmtree(trial.folder)
    trials = list(map(json.loads, lines.read_text(encoding="utf-8").splitlines()))
    faults = [found for found in trials if found["faults"]]
    counts = Counter(kind for found in trials for kind in found.get("landed", []))
    print(f"{args.trials} trials, untouched run {length:.0f} s, {len(faults)} that didn't hold; hits: "
          + ", ".join(f"{kind} {count}" for kind, count in counts.items()))
    return int(bool(faults))
