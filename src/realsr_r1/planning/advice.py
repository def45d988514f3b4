"""What would fit on a machine: the largest groups and batches, other ways to train, first changes.

It asks `memory` again with one setting changed at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from realsr_r1.planning.machines import GIB, Machine
from realsr_r1.planning.memory import peak, phases
from realsr_r1.planning.workload import Sharding, Workload

# The share of a GPU's memory that is planned with. torch's allocator loses some memory to blocks
# that don't fit later requests, and these formulas are no measurement.
USABLE = 0.9
LORA_RANK = 32  # the rank in configs/recipes/lora_grpo.yaml
MOST = 64       # the largest group and number of prompts that are tried


def fits(work: Workload, machine: Machine) -> bool:
    """Whether every phase stays within `USABLE` of a GPU's memory."""
    return peak(work)[1] <= USABLE * machine.memory


@dataclass(frozen=True)
class Way:
    """A way to train: its name, the flags that choose it, its peak, and whether it fits.

    The peak is in bytes, with the phase in which it occurs.
    """

    name: str
    flags: str
    phase: str
    bytes: float
    fits: bool


def ways(work: Workload, machine: Machine) -> list[Way]:
    """Return the ways to train: all weights or adapters, with each of local_scripts' ZeRO settings.

    All other settings stay as they are.
    """
    full = replace(work, trained=work.policy.parameters, adapters=0, quantised_bits=0, weight_bytes=2,
                   autocast=False)
    rank = sum(sum(shape) for shape in work.policy.matrices.values()) * work.policy.layers * LORA_RANK
    lora = replace(full, trained=work.adapters or rank, adapters=work.adapters or rank)
    zero2, zero3 = Sharding(2, overlap=True), Sharding(3, overlap=True)
    offload = replace(zero3, offload_optimizer=True, offload_parameters=True)
    recipe = "--config configs/recipes/{}.yaml --deepspeed local_scripts/{}.json"
    found = []
    for name, flags, candidate in (
            ("all weights, ZeRO-3", "--deepspeed local_scripts/zero3.json", replace(full, sharding=zero3)),
            ("all weights, ZeRO-3 with offload", "--deepspeed local_scripts/zero3_offload.json",
             replace(full, sharding=offload)),
            ("all weights, ZeRO-2", "--deepspeed local_scripts/zero2.json", replace(full, sharding=zero2)),
            ("LoRA, ZeRO-3", recipe.format("lora_grpo", "zero3"), replace(lora, sharding=zero3)),
            ("LoRA, ZeRO-2", recipe.format("lora_grpo", "zero2"), replace(lora, sharding=zero2)),
            ("QLoRA (4 bits), ZeRO-2", recipe.format("qlora_grpo", "zero2"),
             replace(lora, sharding=zero2, quantised_bits=4, nested=True))):
        phase, count = peak(candidate)
        found.append(Way(name, flags, phase, count, fits(candidate, machine)))
    return found


def largest(work: Workload, machine: Machine) -> dict[str, int | None]:
    """Return for each setting the largest value that fits while the others stay as they are.

    It is None where even the smallest value doesn't fit.
    """
    def group(count: int) -> Workload:
        micro = count if work.micro == work.generations else min(work.micro, count)
        return replace(work, generations=count, micro=micro)

    def prompts(count: int) -> Workload:
        return replace(work, prompts=count)

    def micro(count: int) -> Workload:
        return replace(work, micro=count)

    divisors = [count for count in range(1, work.rows + 1) if work.rows % count == 0]
    return {"num_generations": _largest(group, range(2, MOST + 1), machine),
            "per_device_train_batch_size": _largest(prompts, range(1, MOST + 1), machine),
            "loss_batch_size": _largest(micro, divisors, machine)}


def _largest(change: Callable[[int], Workload], candidates: Sequence[int], machine: Machine) -> int | None:
    found = None
    for candidate in candidates:  # ascending: later ones need more memory
        if not fits(change(candidate), machine):
            break
        found = candidate
    return found


def advice(work: Workload, machine: Machine) -> list[str]:
    """Return sentences that say whether the run fits.

    If it doesn't, they list each single change that makes it fit. Where room is left, they say what
    to use it for.
    """
    phase, count = peak(work)
    room = f"{count / GIB:.1f} of {machine.memory / GIB:.0f} GiB at its peak ({phase})"
    if fits(work, machine):
        return [f"It fits: {room}.", *_use_of_room(work, machine)]
    verdict = "It is too close to the limit to count on" if count <= machine.memory else "It doesn't fit"
    changes = _remedies(work)
    helps = [f"{name} ({peak(change(work))[1] / GIB:.1f} GiB)" for name, change in changes
             if fits(change(work), machine)]
    if helps:
        return [f"{verdict}: {room}.", "Each of these alone makes it fit: " + "; ".join(helps) + "."]
    together, changed = [], work
    for name, change in changes:
        if peak(change(changed))[1] < peak(changed)[1]:
            together, changed = [*together, name], change(changed)
        if fits(changed, machine):
            needed = f"{peak(changed)[1] / GIB:.1f} GiB"
            changes_needed = "; ".join(together)
            return [f"{verdict}: {room}.", f"Together these make it fit ({needed}): {changes_needed}."]
    possible = [way for way in ways(work, machine) if way.fits]
    if possible:
        return [f"{verdict}: {room}.",
                f"No change of these settings is enough; {possible[0].name} fits: {possible[0].flags}."]
    return [f"{verdict}: {room}.", "No change of settings is enough: it takes more memory a GPU, more GPUs, "
                                   "or adapters with "
            "shorter completions (--max_completion_length)."]


def _remedies(work: Workload) -> list[tuple[str, Callable[[Workload], Workload]]]:
    """Return single changes; those that change the training least come first."""
    final = work.images[-1]
    found: list[tuple[str, Callable[[Workload], Workload]]] = []
    if work.micro > 1:
        found.append(("--loss_batch_size 1", lambda of: replace(of, micro=1)))
    if not work.checkpointing:
        found.append(("--gradient_checkpointing true", lambda of: replace(of, checkpointing=True)))
    if work.span > final:
        found.append(("--grammar chain (its caches end at the final image)",
                      lambda of: replace(of, span=final)))
    if work.expected < work.completion:
        found.append((f"--max_completion_length {work.expected} (a whole chain)",
                      lambda of: replace(of, completion=of.expected, span=min(of.span, of.expected))))
    if not work.states_leave and work.sharding.stage != 2 and not work.sharding.offload_optimizer:
        found.append(("--offload_during_rollout true", lambda of: replace(of, states_leave=True)))
    if not work.int8_caches:
        found.append(("--cache_dtype int8", lambda of: replace(of, int8_caches=True)))
    if work.sharding.stage == 3 and not work.sharding.offload_optimizer:
        found.append(("--deepspeed local_scripts/zero3_offload.json", lambda of: replace(of, sharding=replace(
            of.sharding, offload_optimizer=True, offload_parameters=True))))
    if work.span:
        found.append(("--guidance_scale 1", lambda of: replace(of, span=0)))
    for count in range(work.generations - 1, 1, -1):
        found.append((f"--num_generations {count}", partial(_with_generations, count)))
    return found


def _with_generations(count: int, work: Workload) -> Workload:
    return replace(work, generations=count, micro=min(work.micro, count))


def _use_of_room(work: Workload, machine: Machine) -> list[str]:
    best = largest(work, machine)
    lines = []
    if (best["loss_batch_size"] or 0) > work.micro:
        lines.append(f"--loss_batch_size {best['loss_batch_size']} fits, too: a prompt is computed once for "
                     f"{best['loss_batch_size']} completions, and weights are sent for fewer microbatches.")
    unconditional = phases(work)["rollout"].get("cache: unconditional", 0)
    if work.span > work.images[-1] and unconditional > 0.1 * machine.memory:
        lines.append(f"The unconditional caches ({unconditional / GIB:.1f} GiB) are made for the longest "
                     "image that fits the budget; --grammar chain makes them for the final image.")
    return lines
