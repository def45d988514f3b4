"""Time and memory of the loss (forward and backward) with a shared prompt, beside the same without
sharing.

    python scripts/benchmarks/benchmark_step.py [--json FILE]

`shared`: the prompt once a group. `plain`: every row whole, the same chunked head on the
completions' positions only. `trl`: every row whole, as TRL runs it where there is no Triton (head
on every position). In turn in one process, float32, 2 threads; ratios are medians over turns. Peak
memory: each path in a process of its own, above its level before the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarking import median_ratio, paired_seconds, random_policy
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.training.grpo.packing import pack_groups

PATHS = ("shared", "plain", "trl")
SHAPE = {"prompt": 600, "completion": 300, "generations": 5, "hidden": 256, "layers": 4, "heads": 4,
         "intermediate": 688, "vocabulary": 4096}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory_of", choices=PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = Steps(args)
    if args.memory_of:
        print(peak_bytes(getattr(steps, args.memory_of)))
        return
    difference = steps.largest_difference()
    seconds = paired_seconds({name: getattr(steps, name) for name in PATHS}, args.repeats)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    memory = {name: int(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory_of", name],
                                       check=True, capture_output=True, text=True, env=environment).stdout)
              for name in PATHS}
    figures = {**{name: getattr(args, name) for name in SHAPE}, "gradients differ by (relative)": difference,
               **{f"time, shared / {other}": median_ratio(seconds, "shared", other) for other in PATHS[1:]},
               **{f"memory, shared / {other}": memory["shared"] / memory[other] for other in PATHS[1:]},
               **{f"{name}, s": statistics.median(seconds[name]) for name in PATHS},
               **{f"{name}, MiB": memory[name] / 2**20 for name in PATHS}}
    for name, value in figures.items():
        print(f"{name:32} {value:.3g}" if isinstance(value, float) else f"{name:32} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


class Steps:
    """One group, and the three ways to its gradients."""

    def __init__(self, args: argparse.Namespace):
        self.policy: PreTrainedModel = random_policy(args.hidden, args.layers, args.heads, args.intermediate,
                                                     args.vocabulary).train()
        add_fused_lm_head(self.policy, temperature=1.0, cast_lm_head_to_fp32=False,
                          outputs=("log_probs", "entropy"))
        prompt = torch.randint(2, args.vocabulary, (1, args.prompt)).expand(args.generations, -1)
        completions = torch.randint(2, args.vocabulary, (args.generations, args.completion))
        self.completions, self.ids = completions, torch.cat((prompt, completions), dim=1)
        self.mask = torch.ones_like(self.ids)
        self.weights = torch.randn(completions.shape)

    def _learn(self, **inputs: object) -> None:
        self.policy.zero_grad()
        log_probs = self.policy(**inputs, fused_lm_head=True).log_probs
        (log_probs[:, -self.weights.shape[1]:] * self.weights).sum().backward()

    def shared(self) -> None:
        """The prompt once."""
        packed = pack_groups(self.ids, self.mask, self.weights.shape[1])
        self._learn(input_ids=packed.input_ids, shared_prompts=packed.layout, shift_labels=packed.labels)

    def plain(self) -> None:
        """Every row whole, logits where they are needed."""
        length = self.weights.shape[1]

        def keep(module: torch.nn.Module, inputs: object, outputs: object) -> None:
            outputs.last_hidden_state = outputs.last_hidden_state[:, -length - 1:-1]

        hook = self.policy.model.register_forward_hook(keep)
        self._learn(input_ids=self.ids, attention_mask=self.mask, shift_labels=self.completions)
        hook.remove()

    def trl(self) -> None:
        """Every row whole, logits everywhere."""
        labels = self.ids.clone()
        labels[:, :-self.weights.shape[1]] = -100
        self._learn(input_ids=self.ids, attention_mask=self.mask, labels=labels)

    def largest_difference(self) -> float:
        """Largest difference of a gradient between shared and plain, in parts of that tensor's
        largest gradient.
        """
        self.plain()
        expected = [parameter.grad.clone() for parameter in self.policy.parameters()]
        self.shared()
        return max(float((parameter.grad - want).abs().max() / want.abs().max())
                   for parameter, want in zip(self.policy.parameters(), expected, strict=True))


def peak_bytes(step: Callable[[], None]) -> int:
    """Resident bytes of this process at the step's peak, above those before it (Linux).

    Its first step, so that memory that an earlier one gave back doesn't hide anything.
    """
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # starts VmHWM, the peak, again
    step()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A size in bytes from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
                if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
