"""Plans a GRPO run before GPUs are rented: memory and time by part, their limits, and what fits.

    realsr-r1 plan --config configs/recipes/pure_7b_grpo.yaml --gpu a100-80gb --gpus 6 \\
        --model_name_or_path configs/models/pure_7b

Needs no GPU and no weights; the formulas are in `realsr_r1.planning`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import check_new_file, write_json
from realsr_r1.core.flags import Parser
from realsr_r1.core.presets import find_preset
from realsr_r1.core.settings import check_ranges

if TYPE_CHECKING:
    from realsr_r1.planning.machines import Machine
    from realsr_r1.planning.workload import Workload

RATES = {"memory_gib": "a GPU's memory, GiB", "tflops": "TFLOP/s that training reaches in its type",
         "bandwidth_gb": "GB/s of a GPU's memory", "link_gb": "GB/s between GPUs of a machine, one direction",
         "network_gb": "GB/s between machines, of a whole machine",
         "host_gb": "GB/s between a GPU and the CPU",
         "launch_us": "microseconds to start an operation"}


def main(argv: list[str] | None = None) -> None:
    """Read settings, machine and model, compute the plan, and show it."""
    own, rest = _parser().parse_known_args(argv)
    check_ranges(own, {"gpus": (1, 10**6), "nodes": (1, 10**6), "text_tokens": (0, 2**20)})
    machine = _machine(own)
    if own.json:
        check_new_file(own.json, "--json", "plan.json")
    work = _workload(own, rest, machine)
    result = plan(work, machine)
    show(work, machine, result)
    if own.json:
        write_json(own.json, result)
        print(f"written to {own.json}")


def plan(work: Workload, machine: Machine) -> dict[str, Any]:
    """Return all figures of the plan, in bytes and seconds, ready for JSON."""
    from realsr_r1.planning.advice import advice, fits, largest, ways
    from realsr_r1.planning.duration import parts
    from realsr_r1.planning.memory import peak, phases

    phase, count = peak(work)
    times = parts(work, machine)
    return {
        "machine": {**dataclasses.asdict(machine), "world": machine.world}, "run": dataclasses.asdict(work),
        "parameters": {"policy": work.policy.parameters, "trained": work.trained},
        "memory_bytes": phases(work), "peak": {"phase": phase, "bytes": count, "fits": fits(work, machine)},
        "time": [{"part": part.name, "seconds": part.seconds, "limit": part.limit, "limits": part.limits}
                 for part in times],
        "seconds": sum(part.seconds for part in times),
        "ways": [dataclasses.asdict(way) for way in ways(work, machine)], "largest": largest(work, machine),
        "advice": advice(work, machine)}


def show(work: Workload, machine: Machine, result: dict[str, Any]) -> None:
    """Print the figures as tables, and the advice below them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from realsr_r1.planning.advice import USABLE
    from realsr_r1.planning.machines import GIB

    def table(title: str, *columns: str, left: int = 1) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number < left else "right")
        return made

    phases: dict[str, dict[str, float]] = result["memory_bytes"]
    memory = table("Memory of one GPU, GiB", "", *phases)
    for part in dict.fromkeys(part for parts in phases.values() for part in parts):
        memory.add_row(part,
                       *(f"{parts[part] / GIB:.2f}" if part in parts else "" for parts in phases.values()))
    memory.add_section()
    memory.add_row("sum", *(f"{sum(parts.values()) / GIB:.2f}" for parts in phases.values()))

    times = table("Time of one rollout and of learning from it", "", "seconds", "share", "limited by")
    for part in result["time"]:
        times.add_row(part["part"], f"{part['seconds']:.1f}", f"{part['seconds'] / result['seconds']:.0%}",
                      part["limit"])
    times.add_section()
    times.add_row("sum", f"{result['seconds']:.1f}", "", "")

    others = table("Other ways, with the same lengths and batches", "", "peak, GiB", "in", "fits")
    for way in result["ways"]:
        others.add_row(way["name"], f"{way['bytes'] / GIB:.1f}", way["phase"], "yes" if way["fits"] else "no")

    width = max(100, Console().width)  # a pipe has no width, and tables shouldn't be cut there
    console = Console(width=width, highlight=False)
    print(f"Machine: {machine.nodes} x {machine.gpus} GPUs ({machine.name}: {machine.source})\nreached: "
          f"{machine.flops / 1e12:.0f} TFLOP/s, {machine.bandwidth / 1e9:.0f} GB/s memory, "
          f"{machine.gather_rate / 1e9:.0f} GB/s to other GPUs")
    print(f"Policy: {work.policy.parameters:,} parameters, {work.trained:,} trained\nA GPU rolls out "
          f"{work.prompts} x {work.generations} completions of {work.expected:,} tokens (caches for "
          f"{work.completion:,}) on {work.prompt:,} prompt tokens, and learns from {work.micro} at a time\n")
    for one in (memory, times, others):
        console.print(one)
    fitting = [f"{name} {value}" for name, value in result["largest"].items() if value is not None]
    others = [name for name, value in result["largest"].items() if value is None]
    if fitting:
        print(f"Largest value that fits, the other settings as they are: {', '.join(fitting)}")
    if others:
        print(f"No value alone makes it fit: {', '.join(others)}")
    print(f"(A plan fits below {USABLE:.0%} of the memory; the rest is for fragmentation. Times are bounds "
          "from below.)\n")
    print("\n".join(result["advice"]))


def _machine(own: argparse.Namespace) -> Machine:
    from realsr_r1.planning.machines import machine, read_measured

    measured = read_measured(own.machine) if own.machine else {}
    measured |= {name: value for name in RATES if (value := getattr(own, name)) is not None}
    return machine(own.gpu, own.gpus, own.nodes, measured)


def _workload(own: argparse.Namespace, rest: list[str], machine: Machine) -> Workload:
    from trl import ModelConfig

    from realsr_r1.chain.settings import SETTINGS_FILE
    from realsr_r1.core.settings import parse
    from realsr_r1.models.loading import policy_config
    from realsr_r1.planning.workload import Sharding, TokenizerShape, tokenizer_values, workload
    from realsr_r1.training.comparison import compared
    from realsr_r1.training.config import ChainGRPOConfig

    # A plan reads no data, but grpo's settings need a name.
    args, model_args = parse((ChainGRPOConfig, ModelConfig), ["--dataset_name", "none", *rest],
                             "realsr-r1 plan")
    if not model_args.model_name_or_path:
        raise UserError("--model_name_or_path must name a model folder, or one with a config.json only "
                        "(configs/models/pure_7b)")
    model = Path(model_args.model_name_or_path)
    policy = policy_config(model).shape
    given = own.chain_settings or args.chain_settings
    chain = _chain_settings(given or model / SETTINGS_FILE, required=given is not None)
    compared(args, model_args, chain, "grpo")
    tokenizer = TokenizerShape.of(tokenizer_values(model, policy), chain.target_px,
                                  str(model / "image_tokenizer"))
    sharding = Sharding() if own.deepspeed == "none" else Sharding.read(own.deepspeed)
    return workload(args, model_args, policy, tokenizer, chain, sharding, machine.world, own.text_tokens)


def _chain_settings(path: str | Path, required: bool) -> Any:
    """Return chain settings from a JSON or YAML file.

    Where there is no file they are the published ones (512 px), unless a file is `required`.
    """
    from realsr_r1.chain.settings import ChainSettings

    if not required and not Path(path).is_file():
        return ChainSettings()
    return ChainSettings.read(path, "--chain_settings")


def _parser() -> Parser:
    parser = Parser(
        prog="realsr-r1 plan", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Memory and time by part of a GRPO run on a machine, what limits each, and what would "
                    "fit.",
        epilog="Every setting of realsr-r1 grpo is taken, too: --config FILE.yaml, --model_name_or_path DIR, "
               "--beta 0.04, ...")
    add = parser.add_argument
    add("--gpu", metavar="NAME", help="a GPU by name, e.g. a100-80gb, h100-80gb, l40s, rtx4090")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs a machine (default 1)")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    add("--machine", metavar="FILE", help="YAML or JSON of measured numbers, the seven below by name")
    for name, what in RATES.items():
        add(f"--{name}", type=float, metavar="X", help=f"measured: {what}")
    add("--deepspeed", metavar="FILE", default=find_preset("--deepspeed", "zero3"),
        help="DeepSpeed JSON, or none (default local_scripts/zero3.json, as in scripts/train_grpo.sh)")
    add("--chain_settings", metavar="FILE", help="for a folder without chain_settings.json (default: images "
                                                 "up to 512 px)")
    add("--text_tokens", type=int, default=300, metavar="N",
        help="tokens of a chain beside its images, for times (default 300)")
    add("--json", metavar="FILE", help="write all figures here, bytes and seconds")
    return parser


if __name__ == "__main__":
    run(main)
