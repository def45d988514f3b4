"""Runs what needs a GPU within a budget of minutes, and writes how each check ended (gpu_check.sh).

    bash scripts/gpu_check.sh --minutes 8

Each check is a process of its own, most important first. One that has no time left, or no GPU, is
marked as not run; the table is written again after every check, so nothing is lost where the machine
goes. OUTPUT gets gpu_check.md, gpu_check.json and gpu_check.log, and with --cpu_tests their log.
`held` and `fell short` are said of the lines in the table. A floor is the time that reading weights
and caches takes at the bandwidth of a copy on the same card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-p",
          "no:cacheprovider"]
# What the checks import, beside what comes with these.
NEEDED = ("torch", "transformers", "trl", "deepspeed", "peft", "datasets", "accelerate", "safetensors",
          "pydantic", "pyiqa", "cv2", "skimage", "jinja2", "pytest", "xdist")
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "peft", "datasets", "triton")
HELD, SHORT, NOT_RUN, REHEARSED = "held", "fell short", "not run", "rehearsed"
PATIENCE = 2.5
# 450 tokens/s on an H100, and 800 with Jacobi decoding. Its floor is 620 at its data sheet's 3,350 GB/s,
# and 555 at the 3,000 that a copy reaches.
OF_FLOOR, OF_FLOOR_JACOBI, OF_PLAN = 1.23, 0.69, 0.10
Figures = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A command, and what its figures must be.

    `seconds`: how long it takes on an H100, about. `small`: other flags for a rehearsal on a CPU.
    `verdict`: from figures to what they must be, and whether they are.
    """

    name: str
    seconds: int
    command: list[str]
    small: list[str] = field(default_factory=list)
    verdict: Callable[[Figures], list[tuple[str, bool]]] = lambda figures: []


def near_plan(name: str, planned: str = "planned") -> Callable[[Figures], tuple[str, bool]]:
    """Whether a peak is as planned, within `OF_PLAN`."""
    def line(figures: Figures) -> tuple[str, bool]:
        ratio = figures.get(f"{name}, GiB", math.nan) / figures.get(f"{planned}, GiB", math.nan)
        return f"peak {ratio:.2f} of the plan (0.90 to 1.10)", abs(ratio - 1) <= OF_PLAN
    return line


def of_short(figures: Figures) -> list[tuple[str, bool]]:
    ratio = figures["graphs / plain"]
    return [(f"graphs {ratio:.2f} of eager (below 1)", ratio < 1),
            (f"eager {figures['plain / naive']:.2f} of the naive loop (below 0.5)",
             figures["plain / naive"] < 0.5)]


def of_full(figures: Figures) -> list[tuple[str, bool]]:
    lines = [near_plan("graphs")(figures)]
    for name, most in (("graphs", OF_FLOOR), ("jacobi", OF_FLOOR_JACOBI)):
        ratio = figures[f"{name} / floor"]
        lines.append((f"{name} {figures[f'{name}, tokens/s']:.0f} tokens/s, {ratio:.2f} of the floor's time "
                      f"(at most {most})", ratio <= most))
    return lines


def of_int8(figures: Figures) -> list[tuple[str, bool]]:
    faster = figures["int8 / graphs"]
    return [(f"int8 caches take {faster:.2f} of the time (below 1)", faster < 1),
            near_plan("int8", "int8 planned")(figures)]


def of_loss(figures: Figures) -> list[tuple[str, bool]]:
    return [near_plan("shared")(figures),
            (f"MFU {figures['shared, MFU']:.2f} (0.40 or more)", figures["shared, MFU"] >= 0.4)]


def of_grpo(figures: Figures) -> list[tuple[str, bool]]:
    return [(f"steps {figures['steps']} (1, 2, and 3 after going on)", figures["steps"] == [1, 2, 3]),
            (f"losses {figures['losses']} (finite)", all(map(math.isfinite, figures["losses"])))]


def of_kernels(figures: Figures) -> list[tuple[str, bool]]:
    return [(f"{figures['kernels a layer']:.0f} kernels a layer of an image token (at most 25)",
             figures["kernels a layer"] <= 25)]


def checks() -> list[Check]:
    """All checks, the most important first."""
    python = sys.executable
    rollout = [python, "scripts/benchmarks/benchmark_rollout.py", "--preset", "pure_7b", "--dtype",
               "bfloat16", "--device", "cuda", "--repeats", "1"]
    loss = [python, "scripts/benchmarks/benchmark_step.py", "--preset", "pure_7b", "--dtype", "bfloat16",
            "--device", "cuda", "--repeats", "2", "--prompt", "4214", "--completion", "5800", "--lora", "32",
            "--checkpointing", "--paths", "shared"]
    to_cpu = ["--device", "cpu", "--dtype", "float32", "--preset", "small", "--layers", "2"]
    small_rollout = [*to_cpu, "--units", "1", "--prompt", "100", "--naive_tokens", "5"]
    small_loss = [*to_cpu, "--prompt", "60", "--completion", "40", "--vocabulary", "512"]
    own = [python, "scripts/tools/gpu_measures.py"]
    return [
        Check("same_as_cpu", 40, [*PYTEST, "tests/gpu"]),
        Check("grpo", 80, [*own, "grpo"], verdict=of_grpo),
        Check("kernels", 20, [*own, "kernels"], verdict=of_kernels),
        Check("loss", 40, [*loss, "--generations", "5"], small_loss, of_loss),
        Check("rollout_short", 90, [*rollout, "--units", "8", "--prompt", "4214", "--naive_tokens", "150",
                                    "--variants", "plain", "graphs"], small_rollout, of_short),
        Check("rollout_full", 140, [*rollout, "--units", "16", "--prompt", "4214", "--naive_tokens", "0",
                                    "--variants", "graphs", "jacobi"], small_rollout, of_full),
        Check("rollout_int8", 60, [*rollout, "--units", "8", "--prompt", "4214", "--naive_tokens", "0",
                                   "--variants", "graphs", "int8"], small_rollout, of_int8),
        Check("loss_of_one", 35, [*loss, "--generations", "1"], small_loss, of_loss),
    ]


def main() -> int:
    """Run the checks; returns 1 where one fell short."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="budget (default: 8)")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu_check",
                        help="folder for the tables (default: outputs/gpu_check)")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in checks()],
                        help="these checks (default: all)")
    parser.add_argument("--cpu_tests", type=int, default=0, metavar="N",
                        help="beside the checks, run the CPU's tests of rollout, models and training with N "
                             "workers, GPUs hidden (default: don't)")
    parser.add_argument("--rehearse", action="store_true", help="run the GPU's checks small, on the CPU")
    args = parser.parse_args()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        parser.error(f"{sys.executable} lacks {', '.join(missing)}: see --wheels in scripts/gpu_check.sh")
    args.output = args.output.absolute()
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gpu_check.log").unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    tests = cpu_tests(args) if args.cpu_tests else None
    results: Figures = {"machine": about_machine(), "checks": []}
    for check in checks():
        if args.only and check.name not in args.only:
            continue
        result = ended(check, args, deadline - time.monotonic())
        results["checks"].append(result)
        print(f"{check.name}: {result['result']}, {result['seconds']} s; {'; '.join(result['lines'])}",
              flush=True)
        write(results, args.output)
    if tests:
        results["checks"].append(end_of_tests(*tests, deadline - time.monotonic()))
        write(results, args.output)
    print((args.output / "gpu_check.md").read_text(encoding="utf-8"))
    return int(any(result["result"] == SHORT for result in results["checks"]))


def ended(check: Check, args: argparse.Namespace, left: float) -> Figures:
    """Run a check in at most `left` seconds, and say how it ended.

    One that takes `PATIENCE` times its seconds hangs, or is too slow, and falls short.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not args.rehearse:
        return result_of(check.name, NOT_RUN, 0, ["no GPU"])
    if left < check.seconds and not args.rehearse:
        return result_of(check.name, NOT_RUN, 0, [f"{left:.0f} s left, it takes {check.seconds}"])
    log, figures = args.output / "gpu_check.log", args.output / "figures.partial"
    figures.unlink(missing_ok=True)
    command = [*check.command, *(check.small if args.rehearse else [])]
    if "pytest" not in command:
        command += ["--json", str(figures)]
    limit = min(left, PATIENCE * check.seconds)
    started = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n== {check.name}\n")
        file.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        code = code_within(process, None if args.rehearse else limit)
    seconds, last = time.monotonic() - started, last_line(log)
    if code is None:
        return result_of(check.name, NOT_RUN if limit == left else SHORT, seconds,
                         [f"ended after {limit:.0f} s"])
    if code:
        return result_of(check.name, SHORT, seconds, [f"exit code {code}: {last}"])
    if "pytest" in command:
        return result_of(check.name, HELD if has_gpu else REHEARSED, seconds, [last])
    if not figures.exists():
        return result_of(check.name, SHORT, seconds, [f"it wrote no figures: {last}"])
    found = json.loads(figures.read_text(encoding="utf-8"))
    figures.unlink()
    try:
        lines = check.verdict(found)
    except KeyError as missing:
        return result_of(check.name, SHORT, seconds, [f"no figure {missing}"], found)
    if not has_gpu:
        return result_of(check.name, REHEARSED, seconds, [text for text, _ in lines], found)
    return result_of(check.name, HELD if all(good for _, good in lines) else SHORT, seconds,
                     [text + ("" if good else " **no**") for text, good in lines], found)


def code_within(process: subprocess.Popen, limit: float | None) -> int | None:
    """Return the exit code of a process of an own session; None where it was ended with all it started."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def result_of(name: str, result: str, seconds: float, lines: list[str],
              figures: Mapping[str, Any] | None = None) -> Figures:
    """How a check ended."""
    return {"check": name, "result": result, "seconds": round(seconds), "lines": lines,
            "figures": dict(figures or {})}


def last_line(log: Path) -> str:
    """The last line of a log that isn't empty, short, as it may stand in a table."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-200:].replace("|", "/") if lines else ""


def cpu_tests(args: argparse.Namespace) -> tuple[subprocess.Popen, Path, float]:
    """Start the CPU's tests, which run beside the checks."""
    log = args.output / "cpu_tests.log"
    command = [*PYTEST, "-n", str(args.cpu_tests), "tests/rollout", "tests/models", "tests/training"]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True,
                                   env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    return process, log, time.monotonic()


def end_of_tests(process: subprocess.Popen, log: Path, started: float, left: float) -> Figures:
    """Wait for the CPU's tests, and say how they ended."""
    code = code_within(process, max(left, 1))
    seconds, last = time.monotonic() - started, last_line(log)
    if code is None:
        return result_of("cpu_tests", NOT_RUN, seconds, ["the time was up", last])
    return result_of("cpu_tests", SHORT if code else HELD, seconds, [last])


def about_machine() -> Figures:
    """Card, driver and versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["card"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
        if shutil.which("nvidia-smi"):
            found["driver"] = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                text=True).stdout.strip()
    else:
        found["card"] = "none"
    return found


def write(results: Figures, output: Path) -> None:
    """Write the JSON and the table."""
    (output / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = [machine, "", "| check | result | seconds | what |", "|---|---|--:|---|"]
    lines += [f"| `{result['check']}` | {result['result']} | {result['seconds']} | "
              f"{'; '.join(result['lines'])} |" for result in results["checks"]]
    (output / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
