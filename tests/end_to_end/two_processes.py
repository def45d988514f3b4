"""A GRPO run of two processes under torchrun with DeepSpeed ZeRO-3, and what tests ask about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .processes import Run, free_port, start

STEPS = 2


@dataclass
class TwoProcesses:
    """A finished run of two ranks: its folder, its output, and what the probe saw in each rank."""

    folder: Path
    output: str
    seen: Path

    def facts(self, name: str, rank: int) -> dict:
        return json.loads((self.seen / f"{name}-rank{rank}.json").read_text())

    def weights(self, when: str, rank: int) -> dict[str, torch.Tensor]:
        return torch.load(self.seen / f"weights-{when}-rank{rank}.pt", weights_only=True)


def train(folder: Path, model: Path, dataset: Path, flags: list[str], env: dict[str, str] | None = None,
          limit: Callable[[Run], int] = Run.finish) -> TwoProcesses:
    seen = folder / "seen"
    seen.mkdir(parents=True)
    run = start(["bash", "scripts/train_grpo.sh", "--max_steps", str(STEPS), "--learning_rate", "1e-3",
                 "--warmup_steps", "0",
                 "--report_to", "none", *flags], folder / "log.txt",
                {"NPROC": "2", "RECIPE": "configs/recipes/tiny_grpo.yaml", "MODEL": str(model),
                 "DATASET": str(dataset),
                 "OUTPUT": str(folder / "run"), "MASTER_PORT": str(free_port()), "PROBE_FOLDER": str(seen),
                 **(env or {})})
    assert limit(run) == 0, run.output()[-6000:]
    return TwoProcesses(folder / "run", run.output(), seen)
