"""One process of `test_streaming.py`: loads its folders under ZeRO-3 and writes down what it got.

Run by torchrun.

`streaming_worker.py FOLDER`: `FOLDER/big` is loaded for its memory; `FOLDER/small` in bfloat16,
`FOLDER/tied` in float32. `FOLDER/small` is loaded twice more with hpZ, as for a policy and its reference.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from benchmark_loading import ROOT, PeakMemory
from transformers import TrainingArguments

from realsr_r1.models import load_policy
from realsr_r1.training.launch import prepare_process

RANK = int(os.environ["RANK"])
IDS = torch.arange(12).view(2, 6)


def arguments(folder: Path, bf16: bool, name: str = "zero3") -> TrainingArguments:
    """While this is alive, transformers knows of ZeRO-3."""
    settings = json.loads((ROOT / "local_scripts" / f"{name}.json").read_text())
    if name == "zero3_multinode":
        settings["zero_optimization"]["zero_hpz_partition_size"] = 2  # a machine of two ranks
    return TrainingArguments(str(folder / "run"), deepspeed=settings, use_cpu=True, bf16=bf16,
                             report_to="none")


def facts(policy: Any) -> dict[str, Any]:
    """What can be said without gathering."""
    parameters = dict(policy.named_parameters())
    return {
        "here": {name: parameter.ds_tensor.numel() for name, parameter in parameters.items()},
        "dtypes": sorted({str(parameter.dtype) for parameter in parameters.values()}),
        "buffers": sorted({f"{buffer.dtype} {buffer.device}" for buffer in policy.buffers()}),
        "trainable": all(parameter.requires_grad for parameter in parameters.values()),
        "training": policy.training, "name_or_path": policy.config.name_or_path,
        "attention": policy.config._attn_implementation, "eos": policy.generation_config.eos_token_id,
        "tied": policy.lm_head.weight is policy.model.embed_tokens.weight}


def main(folder: Path) -> None:
    args = arguments(folder, bf16=False)
    prepare_process(args)
    with PeakMemory() as peak:
        policy = load_policy(folder / "big")
    found = {"peak": peak.bytes, "big": facts(policy)}
    tied = load_policy(folder / "tied", attn_implementation="eager")
    args = arguments(folder, bf16=True)  # (the float32 one is gone)
    small = load_policy(folder / "small")
    args = arguments(folder, bf16=True, name="zero3_multinode")  # noqa: F841
    copied = [load_policy(folder / "small") for _ in range(2)]
    for name, policy in (("tied", tied), ("small", small), ("copied", copied[1])):
        found[name] = facts(policy)
        with deepspeed.zero.GatheredParameters(list(policy.parameters())), torch.no_grad():
            weights = {name: parameter.clone() for name, parameter in policy.named_parameters()}
            logits = policy(IDS).logits.float()
        torch.save({"weights": weights, "logits": logits}, folder / f"{name}-{RANK}.pt")
    (folder / f"found-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
