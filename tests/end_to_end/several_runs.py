"""Several training runs, one after the other, in the two processes of one launch: starting
processes takes longer than the runs.

`several_runs.py FILE`: a JSON list of {"stage": "grpo" or "sft", "argv": its flags, "seen": folder
for what the probe sees, "copy": [a checkpoint of an earlier run, where the run finds it]}, the last
if it is to go on from there. Of a run with a reference policy, its weights are written before and
after training, too. Run by torchrun.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState

from realsr_r1 import grpo, sft
from realsr_r1.training.grpo import trainer as grpo_trainer


class WatchedTrainer(grpo_trainer.ChainGRPOTrainer):
    """Writes the reference policy's weights down, as this rank gathers them."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        import probe

        if self.ref_model is not None:
            probe.save_weights("reference-begin", self.accelerator.unwrap_model(self.ref_model))
        result = super().train(*args, **kwargs)
        if self.ref_model is not None:
            probe.save_weights("reference-end", self.accelerator.unwrap_model(self.ref_model))
        return result


def main(file: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # for the probe
    grpo_trainer.ChainGRPOTrainer = WatchedTrainer
    for run in json.loads(file.read_text()):
        Path(run["seen"]).mkdir(parents=True, exist_ok=True)
        os.environ["PROBE_FOLDER"] = run["seen"]
        if "copy" in run:
            if os.environ["RANK"] == "0":
                shutil.copytree(*run["copy"])
            torch.distributed.barrier()
        {"grpo": grpo, "sft": sft}[run["stage"]].main(run["argv"])
        torch.distributed.barrier()  # the next run may read what rank 0 has just written
        # As if the process were new to accelerate, which keeps the first run's settings.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
