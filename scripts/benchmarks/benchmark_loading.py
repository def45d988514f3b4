"""What loading a policy costs: memory under ZeRO-3 on two processes, and time in one process.

No GPU is needed.

    .venv/bin/python scripts/benchmarks/benchmark_loading.py

Makes a checkpoint of random weights (0.5 B parameters by default, in Lumina-mGPT's layout and
vocabulary; 2 GB of disk while it runs) and prints, as JSON: `memory`: for each rank of two under
ZeRO-3, the most anonymous memory (RssAnon) while loading in float32, above that before, as a share
of the checkpoint's bytes in float32. `seconds`: medians, page cache warm, of `load_policy` in one
process and of reading the same file with safetensors; `ratio`: of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORLD, INTERVAL = 2, 0.002  # processes; seconds between two looks at memory


def main() -> None:
    """Make the checkpoint, start the two processes, time one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden_size", type=int, default=1280)
    parser.add_argument("--num_hidden_layers", type=int, default=17)
    parser.add_argument("--vocab_size", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=5, help="of the timing; 0 = none")
    parser.add_argument("--folder", help="where the checkpoint is made, and deleted (default: the system's "
                                         "temporary folder)")
    # This is one of the two processes; the checkpoint's folder
    parser.add_argument("--rank_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        return measure_rank(Path(args.rank_of))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        parameters = make_checkpoint(Path(folder), args)
        command = [sys.executable, str(ROOT / "scripts/tools/torchrun.py"), f"--nproc_per_node={WORLD}",
                   "--standalone", __file__, "--rank_of", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        memory = [json.loads((Path(folder) / f"memory-{rank}.json").read_text()) for rank in range(WORLD)]
        seconds = measure_time(Path(folder), args.repeats) if args.repeats else {}
    print(json.dumps({"parameters": parameters,
                      "memory": [round(bytes_ / (4 * parameters), 3) for bytes_ in memory], **seconds}))


def make_checkpoint(folder: Path, args: argparse.Namespace) -> int:
    """Write a random policy of the given shape; return its number of parameters."""
    import torch

    from realsr_r1.core.files import write_json
    from realsr_r1.core.json_yaml import read_json
    from realsr_r1.core.schema import Json
    from realsr_r1.models import new_config, new_policy

    policy = new_policy(new_config(
        vocab_size=args.vocab_size, hidden_size=args.hidden_size,
        intermediate_size=43 * args.hidden_size // 16, num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.hidden_size // 64, num_key_value_heads=args.hidden_size // 64,
        swin_norm=False, model_parallel_size=1))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.uniform_(-0.02, 0.02)
    policy.save_pretrained(folder)
    config = read_json(folder / "config.json", Json)
    write_json(folder / "config.json", {**config, "model_type": "chameleon"})
    return policy.num_parameters()


def measure_rank(folder: Path) -> None:
    """One process of the two: load under ZeRO-3 and write the most memory taken, in bytes, to
    `memory-RANK.json`.
    """
    from transformers import TrainingArguments

    from realsr_r1.models import load_policy
    from realsr_r1.training.launch import prepare_process

    args = TrainingArguments(str(folder), deepspeed=str(ROOT / "local_scripts/zero3.json"), use_cpu=True,
                             report_to="none", bf16=False)
    prepare_process(args)
    with PeakMemory() as peak:
        policy = load_policy(folder, dtype="float32")
    assert all(hasattr(parameter, "ds_tensor") for parameter in policy.parameters())
    (folder / f"memory-{os.environ['RANK']}.json").write_text(json.dumps(peak.bytes))


class PeakMemory:
    """`with PeakMemory() as peak: ...; peak.bytes`: the most anonymous memory of this process above
    that at the start.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.highest = anonymous_memory()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.is_over.wait(INTERVAL):
            self.highest = max(self.highest, anonymous_memory())

    def __exit__(self, *error: Any) -> None:
        self.is_over.set()
        self.thread.join()
        self.bytes = max(self.highest, anonymous_memory()) - self.start


def anonymous_memory() -> int:
    """RssAnon of this process in bytes (Linux)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def measure_time(folder: Path, repeats: int) -> dict[str, Any]:
    """Medians of loading and of plain reading, by turns, `repeats` times after one of each.

    Both only map the file into memory; a sum over every tensor makes both read every byte.
    """
    from safetensors.torch import load_file

    from realsr_r1.models import load_policy

    def read(tensors: Any) -> None:
        for tensor in tensors:
            tensor.detach().sum()

    seconds: dict[str, list[float]] = {"load_policy": [], "safetensors": []}
    for _ in range(repeats + 1):
        for name, load in (("load_policy", lambda: load_policy(folder).parameters()),
                           ("safetensors", lambda: load_file(folder / "model.safetensors").values())):
            started = time.perf_counter()
            read(load())
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(median(values[1:]), 3) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": round(medians["load_policy"] / medians["safetensors"], 2)}


if __name__ == "__main__":
    main()
