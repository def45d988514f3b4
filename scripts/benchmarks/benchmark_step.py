"""Time and memory of the loss (forward and backward) with a shared prompt, beside the same without
sharing.

    python scripts/benchmarks/benchmark_step.py [--json FILE]
    python scripts/benchmarks/benchmark_step.py --preset pure_7b --dtype bfloat16 --device cuda --lora 32 \
        --checkpointing --prompt 4214 --completion 5800 --paths shared --repeats 1

`shared`: the prompt once a group. `plain`: every row whole, the same chunked head on the
completions' positions only. `trl`: every row whole, as TRL runs it where there is no Triton (head
on every position). In turn in one process; ratios are medians over turns. Memory of a CPU: each
path in a process of its own, above its level before the step; of a GPU: what torch held at most,
beside what `realsr-r1 plan` says. MFU: operations of the plan's formula by those of a matrix product
of the same type on the same device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmarking import (
    DTYPES,
    PRESETS,
    add_device_flags,
    median_ratio,
    paired_seconds,
    peak_bytes_on,
    random_policy,
    synchronize,
    workload,
)
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.models.protocol import PolicyShape
from realsr_r1.planning import duration, memory
from realsr_r1.planning.machines import machine
from realsr_r1.planning.workload import Workload
from realsr_r1.training.grpo.packing import pack_groups

PATHS = ("shared", "plain", "trl")
SIZES = {"prompt": 600, "completion": 300, "generations": 5}
SHAPE = {"hidden": 256, "layers": 4, "heads": 4, "intermediate": 688, "vocabulary": 4096}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--preset", choices=PRESETS, help="a policy's shape (default: "
                        + ", ".join(f"{name} {value}" for name, value in SHAPE.items()) + ")")
    for name in SHAPE:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters that alone are trained "
                                                            "(default: all weights are)")
    parser.add_argument("--checkpointing", action="store_true", help="compute layers again in the backward")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=5)
    add_device_flags(parser)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory_of", choices=PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = Steps(args)
    if args.memory_of:
        print(peak_bytes(getattr(steps, args.memory_of)))
        return
    figures = {**{name: getattr(args, name) for name in SIZES}, "preset": args.preset or "own",
               "device": args.device, "dtype": args.dtype, "lora": args.lora}
    if {"shared", "plain"} <= set(args.paths):
        figures["gradients differ by (relative)"] = steps.largest_difference()
    peaks: dict[str, int] = {}

    def step(name: str) -> None:
        peak_bytes_on(args.device)
        getattr(steps, name)()
        peaks[name] = peak_bytes_on(args.device) or 0

    seconds = paired_seconds({name: partial(step, name) for name in args.paths}, args.repeats, args.device)
    if not args.device.startswith("cuda"):
        peaks = {name: memory_of(name) for name in args.paths}
    if "shared" in args.paths:
        for other in args.paths:
            if other != "shared":
                figures[f"time, shared / {other}"] = median_ratio(seconds, "shared", other)
                figures[f"memory, shared / {other}"] = peaks["shared"] / peaks[other]
        flops = duration.loss(steps.work, machine(None, measured={
            "memory_gib": 1, "tflops": 1e-12, "bandwidth_gb": 1})).limits["compute"]
        rate = product_flops_a_second(args.device, args.dtype)
        figures |= {"matrix product, TFLOP/s": rate / 1e12,
                    "shared, MFU": flops / statistics.median(seconds["shared"]) / rate,
                    "planned, GiB": planned_bytes(steps.work) / 2**30}
    figures |= {f"{name}, s": statistics.median(seconds[name]) for name in args.paths}
    figures |= {f"{name}, GiB": peaks[name] / 2**30 for name in args.paths}
    for name, value in figures.items():
        print(f"{name:32} {value:.3g}" if isinstance(value, float) else f"{name:32} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def memory_of(name: str) -> int:
    """Bytes that the step of one path adds on a CPU, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    return int(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory_of", name], check=True,
                              capture_output=True, text=True, env=environment).stdout)


def planned_bytes(work: Workload) -> float:
    """What the plan says of weights, gradients and the loss; no optimizer runs here."""
    held = memory.resident(work)
    return held["weights"] + held["gradients"] + sum(memory.loss(work).values())


def product_flops_a_second(device: str, dtype: str) -> float:
    """The rate of a large matrix product, median of five."""
    side = 8192 if device.startswith("cuda") else 1024
    left = torch.randn(side, side, device=device, dtype=DTYPES[dtype])
    seconds = []
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        left @ left
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[1:])


class Steps:
    """One group, and the three ways to its gradients."""

    def __init__(self, args: argparse.Namespace):
        named = {name: getattr(args, name) for name in SHAPE}
        named["kv_heads"] = args.heads
        own = PolicyShape(**SHAPE, kv_heads=SHAPE["heads"]) if args.preset is None else PRESETS[args.preset]
        shape = replace(own, **{name: value for name, value in named.items() if value})
        self.policy: PreTrainedModel = random_policy(shape, args.device, args.dtype).train()
        if args.checkpointing:
            self.policy.activation_checkpointing_enable({"use_reentrant": False})
        if args.lora:
            self._add_adapters(args.lora)
        add_fused_lm_head(self.policy, temperature=1.0, cast_lm_head_to_fp32=False,
                          outputs=("log_probs", "entropy"))
        prompt = torch.randint(2, shape.vocabulary, (1, args.prompt)).expand(args.generations, -1)
        completions = torch.randint(2, shape.vocabulary, (args.generations, args.completion))
        self.completions = completions.to(args.device)
        self.ids = torch.cat((prompt, completions), dim=1).to(args.device)
        self.mask = torch.ones_like(self.ids)
        self.weights = torch.randn(completions.shape).to(args.device)
        trained = sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)
        self.work = workload(shape, prompt=args.prompt, completion=args.completion,
                             generations=args.generations, checkpointing=args.checkpointing,
                             dtype=args.dtype, adapters=trained if args.lora else 0,
                             on_gpu=args.device.startswith("cuda"))

    def _add_adapters(self, rank: int) -> None:
        """Freeze the policy and put adapters beside all matrices of its layers."""
        from peft import LoraConfig, inject_adapter_in_model

        self.policy.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=rank, target_modules="all-linear", exclude_modules=["lm_head"]),
                                self.policy)
        for name, parameter in self.policy.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()  # as peft does in training
        self.policy.enable_input_require_grads()

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
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.plain()
        expected = [parameter.grad.clone() for parameter in trained]
        self.shared()
        return max(float((parameter.grad - want).abs().max() / want.abs().max().clamp(min=1e-30))
                   for parameter, want in zip(trained, expected, strict=True))


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
