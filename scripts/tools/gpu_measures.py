"""What gpu_check.py measures by itself: a training run, and the kernels of a token.

    python scripts/tools/gpu_measures.py grpo --json FILE

On a machine without a GPU they run on the CPU, where operations are counted in place of kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts" / "benchmarks"), str(ROOT / "tests")]

import small  # noqa: E402
from benchmarking import CODES, random_policy  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402

from realsr_r1.models.protocol import PolicyShape  # noqa: E402

Figures = dict[str, Any]


def grpo() -> Figures:
    """Train the embedded model for two steps under ZeRO-3, and start again for a third."""
    on_gpu, work = torch.cuda.is_available(), Path(tempfile.mkdtemp())
    data = small.write_dataset(work / "data")
    for steps in (2, 3):
        subprocess.run(
            ["bash", "scripts/train_grpo.sh", "--reward_funcs", "format", "degradation", "understanding",
             "--grammar", "chain", "--max_text_tokens", "8", "--num_generations", "3",
             "--per_device_train_batch_size", "3", "--loss_batch_size", "3", "--sample_steps", "0",
             "--bf16", str(on_gpu).lower(), "--cuda_graphs", str(on_gpu).lower(), "--jacobi",
             "4" if on_gpu else "1", "--max_steps", str(steps), "--save_steps", "2", "--logging_steps", "1",
             "--report_to", "none", "--lr_scheduler_type", "constant"], cwd=ROOT, check=True,
            env={**os.environ, "NPROC": "1", "RECIPE": "configs/recipes/tiny_grpo.yaml",
                 "MODEL": "assets/tiny", "DATASET": str(data), "OUTPUT": str(work / "run"),
                 "MASTER_PORT": "auto", "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"})
    log = (work / "run" / "log_history.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, log) if "loss" in line]
    shutil.rmtree(work)
    return {"steps": [line["step"] for line in steps], "losses": [line["loss"] for line in steps]}


def kernels() -> Figures:
    """Count what a decoder starts for an image token with guidance: kernels on a GPU, else operations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {}
    for layers in (2, 6):
        policy = random_policy(PolicyShape(512, 1376, layers, 4, 4, 16_384), device, "bfloat16")
        rows = torch.arange(5, device=device)
        with torch.no_grad():
            codes = torch.tensor(CODES[:4096], device=device)
            decoder = policy.make_decoder([[3] * 300], torch.zeros_like(rows), 64, 64, codes)

            def step(place: int, decoder: Any = decoder, rows: torch.Tensor = rows) -> None:
                decoder.step(torch.full_like(rows, 5), rows, torch.full_like(rows, place), place + 1)

            for place in range(3):
                step(place)
            if device == "cpu":
                with LiveBytes() as counter:
                    step(3)
                counts[layers] = counter.operations
            else:
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    step(3)
                    torch.cuda.synchronize()
                counts[layers] = sum(
                    event.device_type == torch.autograd.DeviceType.CUDA
                    and not re.match("mem(cpy|set)", event.name, re.IGNORECASE)
                    for event in profiler.events())
    return {"kernels a layer": (counts[6] - counts[2]) / 4, "of 2 layers": counts[2], "of 6": counts[6]}


def main() -> None:
    """Measure, write."""
    measures = {"grpo": grpo, "kernels": kernels}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=measures)
    parser.add_argument("--json", type=Path, required=True, help="write the figures here")
    args = parser.parse_args()
    args.json.write_text(json.dumps(measures[args.what]()), encoding="utf-8")


if __name__ == "__main__":
    main()
