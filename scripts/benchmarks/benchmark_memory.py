"""Peak memory of a GRPO step by phase and part as completions grow, beside what `realsr-r1 plan`
says of it.

    python scripts/benchmarks/benchmark_memory.py [--json FILE] [--plot FILE]

Bytes of live tensors (live_bytes.py). Rollouts: the decoder's caches and a few of its steps, which
need what all need, since caches are made at their full length. Loss and update: torch's own
operations on fake tensors, so lengths are not bound by this machine; what a GPU really holds,
benchmark_rollout.py and benchmark_step.py print there. `--resident N` also runs the
loss of that length for good, in a process of its own, and reports by how much its resident memory
grew. The image tokenizer and the experts don't depend on length, and are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from benchmark_step import peak_bytes
from benchmarking import VOCABULARY, random_policy, workload
from live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.models.protocol import PackedRow, PolicyShape
from realsr_r1.planning import memory
from realsr_r1.planning.workload import Workload

SHAPE = {"prompt": 600, "generations": 5, "hidden": 256, "layers": 4, "heads": 4, "intermediate": 688,
         "vocabulary": VOCABULARY}
MIB, KEPT = 2**20, "kept after the loss's forward"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000, 4000],
                        help="of completions, ascending")
    parser.add_argument("--resident", type=int, nargs="*", default=[],
                        help="lengths whose loss is run for good, too")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the phases here")
    parser.add_argument("--resident_of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.resident_of:
        work = describe(args, args.resident_of, args.vocabulary)
        print(peak_bytes(Loss(work)))
        return
    figures: dict[str, Any] = {name: getattr(args, name) for name in SHAPE}
    for vocabulary in (args.vocabulary, args.vocabulary // 2):  # the second only for the comparison below
        figures[str(vocabulary)] = {length: measure(describe(args, length, vocabulary))
                                    for length in args.lengths}
    figures |= growth(*(figures[str(vocabulary)] for vocabulary in (args.vocabulary, args.vocabulary // 2)))
    figures["resident, loss"] = {length: int(subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--resident_of", str(length)], check=True,
        capture_output=True, text=True).stdout) for length in args.resident}
    show(figures, args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        draw(figures[str(args.vocabulary)], args.plot)


def describe(args: argparse.Namespace, completion: int, vocabulary: int) -> Workload:
    """The run as the plan sees it: one process, float32, checkpointing, a whole group in one
    microbatch.
    """
    shape = PolicyShape(args.hidden, args.intermediate, args.layers, args.heads, args.heads, vocabulary)
    return workload(shape, prompt=args.prompt, completion=completion, generations=args.generations,
                    span=completion)


class Loss:
    """A microbatch's forward and backward, as the trainer runs it; gradients are there from the
    microbatches before.
    """

    def __init__(self, work: Workload):
        self.policy = random_policy(work.policy).train()
        self.policy.activation_checkpointing_enable({"use_reentrant": False})
        add_fused_lm_head(self.policy, outputs=("log_probs", "entropy"))
        for parameter in self.policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.layout = PackedRow(((work.prompt, work.micro),), work.completion)
        self.tokens = torch.randint(2, work.policy.vocabulary, (1, work.packed(work.completion)))
        self.labels = torch.randint(2, work.policy.vocabulary, (work.micro, work.completion + 1))

    def forward(self) -> torch.Tensor:
        """The sum of the completions' log-probabilities."""
        return self.policy(input_ids=self.tokens, shared_prompts=self.layout, shift_labels=self.labels,
                           fused_lm_head=True).log_probs.sum()

    def __call__(self) -> None:
        self.forward().backward()


def measure(work: Workload) -> dict[str, Any]:
    """Bytes of the parts and, above weights, gradients and optimizer, of the phases; measured and
    planned.
    """
    with FakeTensorMode():
        loss = Loss(work)
        with LiveBytes() as of_loss:
            total = loss.forward()
            kept = of_loss.now
            total.backward()
        optimizer = torch.optim.AdamW(loss.policy.parameters(), fused=True)  # transformers' default
        with LiveBytes() as of_states:
            optimizer.step()
        states = of_states.now
        with LiveBytes() as of_update:
            optimizer.step()
        weights = sum(parameter.nbytes for parameter in loss.policy.parameters())
    policy = random_policy(work.policy)
    rows = torch.arange(work.generations)
    with LiveBytes() as of_rollout, torch.no_grad():
        decoder = policy.make_decoder([[3] * work.prompt], torch.zeros_like(rows), work.completion, work.span,
                                      torch.arange(4, 4 + work.tokenizer.codes))
        for step in range(3):
            states_, free = decoder.step(torch.full_like(rows, 5), rows, torch.full_like(rows, step),
                                         step + 1)
            decoder.logits(torch.cat((states_, free)))
    caches = {name: sum(tensor.nbytes for cache in of_layers for tensor in cache.tensors())
              for name, of_layers in (("cache: prompts", decoder.shared), ("cache: completions", decoder.own),
                                      ("cache: unconditional", decoder.unconditional))}
    phases = {"rollout": of_rollout.peak, "loss": of_loss.peak, "update": of_update.peak}
    held = 2 * weights + states
    planned = {name: sum(parts.values()) for name, parts in (
        ("rollout", memory.rollout(work)), ("loss", memory.loss(work)), ("update", memory.update(work)))}
    return {"weights": weights, "gradients": weights, "optimizer": states, **caches, KEPT: kept,
            "phases": phases,
            "whole step": held + max(phases.values()), "planned": planned,
            "planned whole step": sum(memory.resident(work).values()) + max(planned.values())}


def growth(full: dict[int, Any], half: dict[int, Any]) -> dict[str, Any]:
    """Bytes a token that a phase grows by between the outer lengths, at the vocabulary and at half
    of it; and how far the longest is above a straight line through the two shortest (1.0: on it).
    """
    lengths = sorted(full)
    shortest, second, longest = lengths[0], lengths[min(1, len(lengths) - 1)], lengths[-1]
    found: dict[str, Any] = {"bytes a token": {}, "above a line": {}}
    for phase in full[longest]["phases"]:
        at = {length: full[length]["phases"][phase] for length in lengths}
        halved = {length: half[length]["phases"][phase] for length in lengths}
        tokens = longest - shortest
        found["bytes a token"][phase] = [(at[longest] - at[shortest]) / tokens,
                                         (halved[longest] - halved[shortest]) / tokens]
        line = at[shortest] + (at[second] - at[shortest]) * tokens / max(1, second - shortest)
        found["above a line"][phase] = at[longest] / line if line else 1.0
    return found


def show(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """The figures in MiB, planned ones in brackets."""
    for length, parts in figures[str(args.vocabulary)].items():
        print(f"completions of {length}: weights {parts['weights'] / MIB:.0f}, gradients "
              f"{parts['gradients'] / MIB:.0f}, optimizer {parts['optimizer'] / MIB:.0f}; caches of prompts "
              f"{parts['cache: prompts'] / MIB:.0f}, completions {parts['cache: completions'] / MIB:.0f}, "
              f"unconditional {parts['cache: unconditional'] / MIB:.0f}; kept after the loss's forward "
              f"{parts[KEPT] / MIB:.0f} MiB")
        for phase, count in parts["phases"].items():
            print(f"    {phase:8} {count / MIB:8.0f} MiB  (planned {parts['planned'][phase] / MIB:.0f})")
        print(f"    whole    {parts['whole step'] / MIB:8.0f} MiB  (planned "
              f"{parts['planned whole step'] / MIB:.0f})")
    for phase, (full, half) in figures["bytes a token"].items():
        print(f"{phase:8} grows by {full / 1024:.1f} KiB a token, with half the vocabulary by "
              f"{half / 1024:.1f} KiB; the longest is {figures['above a line'][phase]:.3f} x a line through "
              "the first two")
    for length, count in figures["resident, loss"].items():
        print(f"resident memory grew by {count / MIB:.0f} MiB in the loss at {length}")


def draw(by_length: dict[int, Any], path: Path) -> None:
    """Phases over length, measured as points and planned as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    lengths = sorted(by_length)
    for number, phase in enumerate(("rollout", "loss", "update")):
        color = f"C{number}"
        axes.plot(lengths, [by_length[length]["planned"][phase] / MIB for length in lengths], color=color,
                  linewidth=1)
        axes.plot(lengths, [by_length[length]["phases"][phase] / MIB for length in lengths], "o",
                  color=color, label=phase)
    axes.set(xlabel="tokens of a completion", ylabel="MiB above weights, gradients, optimizer", xlim=0,
             ylim=0)
    axes.set_title("Peak memory of a step: measured (points), planned (lines)", fontsize=10)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
